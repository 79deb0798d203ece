"""The wheel and the sdist: all is below `icl`, and works where nothing else of the project is."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import icl

ROOT = Path(__file__).parent.parent
# Without it Python finds this checkout.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command, cwd, **options):
    """Standard output of a command that succeeds."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, the wheel made from it, and the wheel made from the tree."""
    folder = tmp_path_factory.mktemp("built")
    # A copy, so that no build folder is left in the checkout or taken from it.
    source = folder / "source"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            shutil.copyfile(ROOT / name, target)
    build = (
        "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    )
    run(sys.executable, "-c", build, "build_sdist", folder, cwd=source)
    run(sys.executable, "-c", build, "build_wheel", folder / "of-tree", cwd=source)
    [sdist] = folder.glob("*.tar.gz")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder)
    [wheel], [wheel_of_tree] = folder.glob("*.whl"), folder.glob("of-tree/*.whl")
    return SimpleNamespace(sdist=sdist, wheel=wheel, wheel_of_tree=wheel_of_tree)


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """A new environment with the wheel; what the wheel needs is lent by this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built.wheel, cwd="/")
    own = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", own, cwd="/").strip())
    assert {path.name for path in packages.iterdir()} == {
        "icl",
        f"fused_icl-{icl.__version__}.dist-info",
    }
    # A folder named in a .pth file is searched, and its own .pth files, such as the one of an
    # editable installation, are not read.
    lent = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (packages / "lent.pth").write_text("\n".join(lent))
    return SimpleNamespace(python=python, icl=folder / "bin" / "icl", packages=packages)


def test_the_wheel_has_one_import_root_and_every_file(built):
    names = zipfile.ZipFile(built.wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"icl"}
    missing = [
        str(path.relative_to(ROOT))
        for top in ("icl", "kernels")
        for path in (ROOT / top).rglob("*.py")
        if "__pycache__" not in path.parts
        and str(path.relative_to(ROOT)).replace("kernels/", "icl/kernels/", top == "kernels")
        not in names
    ]
    assert not missing
    weights = {f"icl/sklearn/weights/{name}.npz" for name in ("classes", "numbers")}
    assert weights | {"icl/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_makes_the_wheel_that_the_tree_makes(built):
    def contents(wheel):
        files = zipfile.ZipFile(wheel).infolist()
        return {f.filename: f.CRC for f in files if not f.filename.endswith("/RECORD")}

    assert contents(built.wheel) == contents(built.wheel_of_tree)
    names = {name.partition("/")[2] for name in tarfile.open(built.sdist).getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names
    assert not any(name.split("/")[0] in ("tests", "bench", "kernels") for name in names)


def test_the_version_is_the_newest_of_the_changelog(built):
    versions = re.findall(r"^## \[?(\d[^ \]]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == icl.__version__
    assert built.wheel.name.startswith(f"fused_icl-{icl.__version__}-")
    assert built.sdist.name == f"fused_icl-{icl.__version__}.tar.gz"


def test_installed_alone_icl_kernels_needs_jax_and_numpy_and_the_rest_says_what_to_install(
    environment, tmp_path
):
    program = f"""
import importlib.util, sys
import jax.numpy as jnp
import icl.kernels
assert icl.kernels.__file__.startswith({str(environment.packages)!r}), icl.kernels.__file__
x = jnp.ones((1, 3, 2, 4))
assert icl.kernels.dot_product_attention(x, x, x).shape == x.shape
loaded = {{"flax", "optax", "orbax", "tyro", "matplotlib", "rich"}} & set(sys.modules)
assert not loaded, loaded
found = importlib.util.find_spec("kernels")
assert found is None, found

sys.modules["flax"] = sys.modules["sklearn"] = None
import icl
for use in (lambda: icl.train, lambda: importlib.import_module("icl.sklearn")):
    try:
        use()
    except ModuleNotFoundError as error:
        assert "fused-icl[train]" in str(error), error
    else:
        raise AssertionError("imported without flax")
"""
    run(environment.python, "-I", "-c", program, cwd=tmp_path)


def test_the_installed_commands_work_in_an_empty_folder(environment, tmp_path):
    assert "garg/linear-xs" in run(environment.icl, "list", "garg", cwd=tmp_path)
    assert icl.__version__ in run(environment.icl, "--version", cwd=tmp_path)
    tiny = ["--training.steps", 2, "--training.batch-size", 8, "--no-evaluate"]
    run(environment.icl, "train", "oswald/one-layer", *tiny, cwd=tmp_path)
    made = {path.name for path in (tmp_path / "runs" / "oswald-one-layer").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= made
    rows = [f"{number},plum\n-{number},lime\n" for number in range(1, 9)]
    (tmp_path / "table.csv").write_text("".join(["size,fruit\n", *rows]))
    asked = ["--train", "table.csv", "--test", "table.csv", "--target", "fruit", "--ensemble", 1]
    assert re.search(r"accuracy +1\.000", run(environment.icl, "predict", *asked, cwd=tmp_path))


def test_the_link_is_a_link():
    assert (ROOT / "icl" / "kernels").is_symlink()
    assert (ROOT / "icl" / "kernels").readlink() == Path("../kernels")
