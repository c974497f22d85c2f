"""Up to data/prepared every processor writes the same bytes; older ones are imitated by switching features off."""

import ast
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, set_params
from numpy._core import _multiarray_umath as numpy_core
from stages import stages

from ral.config.data import PhantomConfig
from ral.phantom.archive import write_phantom

Run = Callable[..., subprocess.CompletedProcess[str]]

# numpy's kernels beyond those for its oldest processor, from old to new, as far as this processor has them.
KERNELS = [name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__.get(name)]

# Other libraries that choose their code by the processor: OpenBLAS, glibc, Arrow, libjpeg-turbo.
OLDEST = {
    "NPY_DISABLE_CPU_FEATURES": " ".join(KERNELS),
    "OPENBLAS_CORETYPE": "Prescott" if platform.machine() == "x86_64" else "ARMV8",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-FMA,-FMA4,-BMI1,-BMI2,-ERMS",
    "ARROW_USER_SIMD_LEVEL": "NONE",
    "JSIMD_FORCENONE": "1",
}

# The last digits of this arithmetic are as the processor likes.
PROBES = {
    "numpy": "numpy.exp(x.astype('f')), numpy.power(x, 0.3), numpy.sin(x)",
    "OpenBLAS": "x @ x",
    "glibc": "numpy.array([[math.exp(v), math.log(v), math.sin(v), math.atan(v)] for v in x.ravel().tolist()])",
}
PROBE = (
    "import hashlib, math, numpy; x = numpy.random.default_rng(0).random((200, 200));"
    " print(hashlib.sha256(b''.join(a.tobytes() for a in [{}])).hexdigest())"
)


# What the phantom may use: exact element by element, or on whole numbers, or not arithmetic at all.
ALLOWED = {
    "np": {
        *("abs", "clip", "floor", "maximum", "minimum", "rint", "sqrt", "where"),
        *("add", "argsort", "bincount", "cumsum", "isin", "prod", "searchsorted", "sort", "unique"),
        *(
            "append",
            "arange",
            "array",
            "asarray",
            "concatenate",
            "eye",
            "frombuffer",
            "repeat",
            "zeros",
            "full",
        ),
        *("bool_", "float32", "float64", "inf", "int16", "int64", "random", "uint8"),
    },
    "np.random": {"default_rng"},
    "self._rng": {"bytes", "integers", "permutation", "random"},
    "math": {"sqrt"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("same_bytes") / "project")
    set_params(
        folder, {"phantom": {"images": 300, "size": 48}, "preprocess": {"size": 32, "shard_images": 100}}
    )
    return folder


def written(project: Path, start: Callable[..., object], last: str, **env: str) -> dict[str, str]:
    """SHA-256 of every file that the steps up to `last` write, by its path.

    Args:
        project: the folder to run them in.
        start: runs a module; a fork has the kernels of the process that it is a fork of.
        last: name of the last step.
        env: variables of the steps.
    """
    shutil.rmtree(project / "data", ignore_errors=True)
    # Else images decoded before would be found there.
    state = project / ".state"
    shutil.rmtree(state, ignore_errors=True)
    names = list(stages())
    for step in names[: names.index(last) + 1]:
        start(f"tasks.{step}", cwd=project, RAL_STATE_DIR=str(state), **env)
    return {
        path.relative_to(project).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((project / "data").rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("library", PROBES)
def test_the_oldest_processor_is_imitated(library: str, run: Run, tmp_path: Path) -> None:
    """Else the other tests would compare a processor with itself."""
    if not KERNELS:
        pytest.skip("numpy has no kernels for processors older than this one")
    command = (sys.executable, "-c", PROBE.format(PROBES[library]))
    assert run(*command, cwd=tmp_path).stdout != run(*command, cwd=tmp_path, **OLDEST).stdout


def test_phantom_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    """On whatever processor. If the way of drawing was changed on purpose, so do these hashes."""
    write_phantom(tmp_path, PhantomConfig(images=200, size=48, floor=0.02, seed=1))
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == {
        "BBox_List_2017.csv": "73f5016cac7e7eee7d9180ed4983a93f851a2a80e1289761e109345da8507cc3",
        "Data_Entry_2017.csv": "6c574757856aa195953e16a9b19be7b13ef2600ee9ff7abe224bab8355acb93c",
        "README.txt": "0c70539d156dd62df2a154affadb02739c2a3906244e6ae1d13e09bdf48706f9",
        "images_001.tar.gz": "00c5aaa1fc347eb604e77da8d289546a2b92de60e7414159931c42e8d319b599",
        "test_list.txt": "98e1c4fe1acf7da75a5fa09abe7b7c2f539c124d3fa628b9ad6370919b7d4922",
        "train_val_list.txt": "ec0dd9875eb5243d6f79f14c670e742f0dcf5637dfa034f4b4bd3c31428b81d5",
    }


def test_phantom_uses_only_what_is_the_same_everywhere() -> None:
    """What differs between processors may not differ between this one's modes, so the names are looked at too."""
    for path in sorted((ROOT / "ral/phantom").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            here = f"{path.name}, line {getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Pow | ast.MatMult), here
            if isinstance(node, ast.Attribute):
                allowed = ALLOWED.get(ast.unparse(node.value))
                assert allowed is None or node.attr in allowed, f"{here}: {ast.unparse(node)}"


@pytest.fixture
def fresh(run: Run) -> Callable[..., object]:
    """Run a module in a process of its own, which chooses its kernels by its variables."""
    return lambda module, **settings: run(sys.executable, "-m", module, **settings)


@pytest.mark.long
def test_steps_write_the_same_bytes_on_the_oldest_processor(
    project: Path, fork: Callable[..., object], fresh: Callable[..., object]
) -> None:
    here = written(project, fork, "preprocess")
    assert {name.split("/")[1] for name in here} >= {"phantom", "manifest.json", "validated", "prepared"}
    assert "data/prepared/shards/00002.arrow" in here
    assert written(project, fresh, "preprocess", **OLDEST) == here


def test_phantom_has_the_same_bytes_on_each_generation(
    project: Path, fork: Callable[..., object], fresh: Callable[..., object]
) -> None:
    here = written(project, fork, "phantom")
    for number in range(len(KERNELS)):
        older = " ".join(KERNELS[number:])
        assert written(project, fresh, "phantom", NPY_DISABLE_CPU_FEATURES=older) == here, older
