"""The floors of the house, and what each file may touch."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rumfast

ROOT = Path(rumfast.__file__).parent.parent
FOLDERS = {"rumfast": "rumfast", "kernels": "rumfast.kernels", "cli": "rumfast.cli", "bench": "rumfast.bench"}
FLOORS = {
    "cli": 9,
    "bench": 8,
    "pipeline": 7,
    "sweeps": 6,
    "plans": 5,
    "algorithms": 4,
    "training": 3,
    "inference": 2, "reporting": 2, "score_files": 2,
    "loaders": 1, "stepping": 1, "scores": 1, "refinement": 1, "surrogates": 1, "store": 1, "doctor": 1,
    "kernels": 0, "models": 0, "data": 0, "evaluation": 0, "config": 0, "runtime": 0, "recipes": 0,
    "progress": -1, "errors": -1,
}  # fmt: skip
BASES = {"runtime", "config", "kernels", "recipes"}  # what the rest of floor 0 may stand on
DISK = {
    "data",
    "loaders",
    "store",
    "score_files",
    "sweeps",
    "reporting",
    "pipeline",
    "recipes",
    "config",
    "cli",
    "bench",
}
DISK_CALLS = {
    "open", "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "makedirs", "unlink", "rmtree",
    "rename", "mkstemp", "mkdtemp", "save_file", "load_file", "savez", "savez_compressed", "tofile", "memmap",
}  # fmt: skip
GLOBAL_RNG = {"torch.manual_seed", "np.random.seed", "np.random.rand", "random.seed", "random.random"}
PURE = {"scores", "refinement", "surrogates", "evaluation"}


def _files():
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            yield path, ".".join((package, *(part for part in inner if part != "__init__")))


FILES = dict(_files())
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def _unit(module):
    """Who on a floor a module belongs to: rumfast.sweeps.run → sweeps; rumfast itself is ""."""
    return module.removeprefix("rumfast").lstrip(".").partition(".")[0]


def _imports(tree):
    """Every imported module with its line, wherever it stands; ``from a import b`` is a.b if a module."""
    modules = set(FILES.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules else node.module), node.lineno


def _allowed(ours, theirs):
    if ours not in FLOORS or theirs not in FLOORS:
        return False
    if ours == theirs or FLOORS[theirs] < FLOORS[ours]:
        return True
    if FLOORS[ours] == FLOORS[theirs] == 0:
        return theirs in BASES and (ours not in BASES or (ours, theirs) == ("config", "recipes"))
    return False


def imports_go_down(unit, tree):
    """A file imports its own folder and the floors below, never up or sideways."""
    for module, line in _imports(tree):
        if unit and module.partition(".")[0] == "rumfast" and not _allowed(unit, _unit(module)):
            yield line, f"{unit} may not import {module}"


def kernels_need_torch_alone(unit, tree):
    for module, line in _imports(tree):
        known = {"torch", "numpy", "numba", "triton"} | sys.stdlib_module_names
        if unit == "kernels" and module.partition(".")[0] not in known and _unit(module) != "kernels":
            yield line, f"imports {module}"


def only_the_rim_touches_the_disk(unit, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and unit not in DISK:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if called in DISK_CALLS or (called in ("save", "load") and owner in ("np", "torch")):
                yield node.lineno, f"{unit} calls {called}"


def scores_refinement_and_evaluation_are_pure(unit, tree):
    if unit in PURE:
        for module, line in _imports(tree):
            if module.partition(".")[0] in {"os", "pathlib", "shutil", "tempfile", "io", "subprocess"}:
                yield line, f"imports {module}"
        yield from ((node.lineno, "global state") for node in ast.walk(tree) if isinstance(node, ast.Global))


def no_bare_except_and_no_global_rng(unit, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"
        if isinstance(node, ast.Call) and unit != "bench" and ast.unparse(node.func) in GLOBAL_RNG:
            yield node.lineno, ast.unparse(node.func)


RULES = [
    imports_go_down,
    kernels_need_torch_alone,
    only_the_rim_touches_the_disk,
    scores_refinement_and_evaluation_are_pure,
    no_bare_except_and_no_global_rng,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule(rule):
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {message}"
        for path, module in FILES.items()
        for line, message in rule(_unit(module), TREES[path])
    ]
    assert not faults, "\n".join(faults)


BROKEN = {
    imports_go_down: [
        ("sweeps", "from rumfast.pipeline import run"),
        ("scores", "import rumfast.store"),
        ("models", "def f():\n    from rumfast.data import pack"),
        ("config", "import rumfast.runtime"),
        ("novelty", "import rumfast.errors"),
    ],
    kernels_need_torch_alone: [("kernels", "import scipy"), ("kernels", "import rumfast.errors")],
    only_the_rim_touches_the_disk: [
        ("plans", "open('x')"),
        ("training", "torch.save(1, 'x')"),
        ("evaluation", "path.write_text('')"),
    ],
    scores_refinement_and_evaluation_are_pure: [
        ("refinement", "from pathlib import Path"),
        ("scores", "def f():\n    global x"),
    ],
    no_bare_except_and_no_global_rng: [
        ("cli", "try:\n    pass\nexcept:\n    pass"),
        ("data", "np.random.seed(0)"),
    ],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule_sees_what_it_forbids(rule):
    for unit, code in BROKEN[rule]:
        assert list(rule(unit, ast.parse(code))), f"{unit}: {code}"


def test_no_circle():
    graph = {
        module: {name for name, _ in _imports(_at_run_time(TREES[path]))} - {module}
        for path, module in FILES.items()
    }
    state: dict[str, str] = {}

    def visit(module, trail):
        assert state.get(module) != "open", " → ".join((*trail, module))
        if module in graph and module not in state:
            state[module] = "open"
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            state[module] = "done"

    for module in graph:
        visit(module, ())


def _at_run_time(tree):
    """The module without what only type checkers import."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return ast.Module(body, [])


def test_import_is_cheap():
    code = "import rumfast, rumfast.config, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "sklearn", "matplotlib", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", rumfast.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    assert getattr(rumfast, name).__doc__


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rumfast' has no attribute 'nothing'"):
        _ = rumfast.nothing
    assert dir(rumfast) == sorted(rumfast.__all__)


def test_a_wheel_holds_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {module for path, module in FILES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == found
