"""The process around a stage: Keras on JAX, quiet logs, compile cache, versions.

Importing this module imports neither jax nor keras nor tensorflow: their settings must be made before.
"""

import contextlib
import gc
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_keras.config.errors import require

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # no information or warnings from XLA's C++ code
    "GRPC_VERBOSITY": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",  # its threads and our forks do not mix
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",  # plots go to files; there may be no display
}
_PACKAGES = (
    "gemma_keras",
    "absl-py",
    "datasets",
    "jax",
    "jaxlib",
    "keras",
    "keras-hub",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "safetensors",
    "sentencepiece",
    "tensorflow",
)


def select_backend() -> None:
    """Makes JAX the backend of Keras, whatever the shell says; must run before keras is imported.

    Raises:
        UserError: keras is already imported on another backend.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    keras = sys.modules.get("keras")
    backend = keras.backend.backend() if keras is not None else "jax"
    require(
        backend == "jax",
        f"keras was imported on the {backend} backend, but gemma_keras needs jax: "
        "set KERAS_BACKEND=jax, or import gemma_keras before keras",
    )


def configure(workdir: Path | None = None) -> None:
    """Prepares the process for a stage: environment, backend and compile cache. Call it before importing the stage.

    Args:
        workdir: takes the compile cache when the user's cache folder cannot be written.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("absl").setLevel(logging.WARNING)
    if not (_may_have_tpu() or _has_jax_plugins()):
        # JAX would ask every libtpu that is installed for its chips, which without any complains at length.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    select_backend()
    if folder := _cache_folder(workdir):
        import jax

        # A second run reads what the first one compiled; only compilations of a second or more are kept.
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    hide_accelerators_from_tensorflow()  # now, since keras-hub imports tensorflow wherever it is installed


def _may_have_tpu(root: Path = Path("/")) -> bool:
    """False only where all speaks against a TPU: no variable for one, no device file, a bus without a chip of Google's."""
    named = any(name.startswith(("TPU_", "CLOUD_TPU_", "JAX_FORCE_TPU", "PJRT_")) for name in os.environ)
    files = [*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*")]
    vendors = list(root.glob("sys/bus/pci/devices/*/vendor"))
    return named or bool(files) or not vendors or any(map(_is_chip, vendors))


def _is_chip(vendor: Path) -> bool:
    """Whether a PCI device is Google's, but none of its virtual disks (class 1) and network cards (class 2)."""
    try:
        kind = vendor.with_name("class").read_text(encoding="ascii")
        return vendor.read_text(encoding="ascii").strip() == "0x1ae0" and not kind.startswith(("0x01", "0x02"))
    except OSError:
        return True


def _has_jax_plugins() -> bool:
    """Whether JAX has more to choose from than libtpu and the CPU: plugins, as for CUDA, name themselves in either way."""
    return bool(importlib.metadata.entry_points(group="jax_plugins")) or bool(importlib.util.find_spec("jax_plugins"))


def _cache_folder(workdir: Path | None) -> Path | None:
    """The first folder of these that can be written: `JAX_COMPILATION_CACHE_DIR`, the user's cache, the workdir."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma_keras" / "jax"
    candidates = [Path(given)] if given else [user_cache, *([workdir / "compile_cache"] if workdir else [])]
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


def limit_programs(share: float = 0.5) -> bool:
    """Forgets all compiled programs once they take up `share` of the memory mappings that a process may have.

    A decoding program of 26 layers has some thousand mappings, and at Linux's limit (65,530 by default) the process ends
    (docs/xla_cpu.md). What is needed again is compiled again. Call it where programs of new shapes are to come; returns whether
    it did so.
    """
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        with open("/proc/self/maps", "rb") as mappings:
            count = sum(1 for _ in mappings)
    except (OSError, ValueError):
        return False  # not Linux
    if count < share * most:
        return False
    import jax

    jax.clear_caches()
    gc.collect()
    return True


def read_hlo(serialized: bytes) -> Any:
    """A compiled program as XLA's `HloModuleProto`, which tensorflow carries."""
    with _silenced_stderr():
        from tensorflow.compiler.xla.service import hlo_pb2
    return hlo_pb2.HloModuleProto.FromString(serialized)


def hide_accelerators_from_tensorflow() -> None:
    """Keeps tensorflow on the CPU, so that it does not take the TPU or GPU memory that JAX needs.

    Must run before tensorflow's first operation; may be called again. Without tensorflow there is nothing to do.
    """
    with _silenced_stderr():  # its C++ code reports on import and on devices, whatever the log level
        try:
            import tensorflow
        except ImportError:
            return
        for kind in ("TPU", "GPU"):
            tensorflow.config.set_visible_devices([], kind)


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Sends the file descriptor itself elsewhere, which holds for C++ code too; exceptions still come through."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that results depend on, for a workdir's `config.json`."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_summary() -> str:
    """One line on what JAX computes on, e.g. `8 x TPU v3 (tpu), jax 0.10.2`."""
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}"
