"""The account of all corpora at hand, as a page."""

from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import DescribeDataConfig
from gemma_keras.config.writing import write_whole
from gemma_keras.data.audit import audit, page, unread
from gemma_keras.data.progress import print_progress
from gemma_keras.stages.running import workdir as files


def run(config: DescribeDataConfig, workdir: Path) -> dict:
    """Reads every known corpus below `data.root`, and `data.corpora` besides; writes data.md and result.json."""
    require(config.data.root != "", "config.data.root is empty; give the folder that holds the corpora.")
    files.begin(workdir, to_dict(config))
    root = Path(config.data.root)
    audits = list(audit(config.data.corpora, root, print_progress))
    write_whole(workdir / "data.md", page(audits, unread(audits, root)).encode())
    result = {
        "readings": len(audits),
        "rows": sum(entry.rows_in for entry in audits),
        "used": sum(entry.used for entry in audits),
        "removed": sum(entry.skipped.total() for entry in audits),
        "quarantined": sum(entry.quarantined for entry in audits),
    }
    files.write_json(workdir / "result.json", result)
    print(f"{workdir / 'data.md'}: " + ", ".join(f"{count:,} {name}" for name, count in result.items()))
    return result
