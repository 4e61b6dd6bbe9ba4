"""QQP and CoLA as the json files of recipe E."""

from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import GlueConfig
from gemma_keras.data import glue_json as glue
from gemma_keras.stages.running import workdir as files


def run(config: GlueConfig, workdir: Path) -> dict:
    """Writes `{name}_train.json` and `{name}_dev.json` of every corpus of `data.corpora`; returns the counts by file."""
    require(config.data.root != "", "config.data.root is empty; give the folder that holds the tsv files.")
    files.begin(workdir, to_dict(config))
    outcomes = glue.run(Path(config.data.root), [corpus.name for corpus in config.data.corpora], workdir)
    files.JsonLines(workdir / "quarantine.jsonl").write(row for _, bad in outcomes.values() for row in bad)
    result = {name: counts for name, (counts, _) in outcomes.items()}
    files.write_json(workdir / "result.json", result)
    for name, figures in result.items():
        print(f"{workdir / name}: " + ", ".join(f"{value:,} {key}" for key, value in figures.items()))
    return result
