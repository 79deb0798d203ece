"""The wheel: everything is below `icl`, and the kernels need jax and numpy alone."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # Built from a copy, so that no build folder is left here or taken from here.
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, listed):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_one_import_root(wheel):
    names = zipfile.ZipFile(wheel).namelist()
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
    assert weights <= set(names)


def test_installed_alone_it_imports_icl_kernels_with_jax_and_numpy_only(wheel, tmp_path):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(target), str(wheel)], check=True)
    # -S leaves out site-packages and with it the editable install; only jax's folder is added.
    program = f"""
import sys
sys.path[:0] = [{str(target)!r}]
sys.path.append({sysconfig.get_path("purelib")!r})
import importlib.util, jax.numpy as jnp
import icl.kernels
assert icl.kernels.__file__.startswith({str(target)!r}), icl.kernels.__file__
x = jnp.ones((1, 3, 2, 4))
assert icl.kernels.dot_product_attention(x, x, x).shape == x.shape
loaded = {{"flax", "optax", "orbax", "tyro", "matplotlib", "rich"}} & set(sys.modules)
assert not loaded, loaded
found = importlib.util.find_spec("kernels")
assert found is None, found
import icl.api
"""
    run = [sys.executable, "-I", "-S", "-c", program]
    subprocess.run(run, check=True, cwd=tmp_path)


def test_without_the_extra_the_message_says_what_to_install(tmp_path):
    program = """
import importlib, sys
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
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_link_is_a_link():
    assert (ROOT / "icl" / "kernels").is_symlink()
    assert (ROOT / "icl" / "kernels").readlink() == Path("../kernels")
