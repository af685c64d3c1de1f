"""Every Triton kernel builds ahead of time for every target, through its launcher, and spills nothing."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch
import triton

import rumfast.kernels
from rumfast.bench import builds
from rumfast.bench.builds import CASES, TARGETS
from rumfast.store import read_json

HEAD = {"registers": 255, "shared": 0, "spills": 4, "options": {}, "arguments": ""}


def start(path, *words):
    """The command in a process of its own: in this one, kernels may be those of the interpreter."""
    return subprocess.Popen(
        [sys.executable, "-m", "rumfast.bench.builds", *words, "--save", str(path)],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def rows_of(job, path):
    output, _ = job.communicate()
    assert job.returncode == 0, output.decode()
    return read_json(path)["builds"][triton.__version__]


@pytest.fixture(scope="module")
def build_rows(tmp_path_factory):
    """The rows of some cases for one target, by kernel."""

    def rows(*cases, target="sm_90"):
        path = tmp_path_factory.mktemp("builds") / "builds.json"
        words = [word for case in cases for word in ("--kernel", case)]
        return {row["kernel"]: row for row in rows_of(start(path, *words, "--target", target), path)}

    return rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_kernels_build_for_all_targets_without_a_spill(tmp_path):
    cases, paths = list(CASES), [tmp_path / "0.json", tmp_path / "1.json"]
    jobs = []
    for part, path in zip((cases[::2], cases[1::2]), paths, strict=True):
        jobs.append(start(path, *(word for case in part for word in ("--kernel", case))))
    rows = [row for job, path in zip(jobs, paths, strict=True) for row in rows_of(job, path)]
    assert {(row["kernel"].split(":")[0], row["target"]) for row in rows} == {
        (case, target) for case in cases for target in TARGETS
    }
    assert all(row["spills"] == 0 and 0 < row["registers"] <= 255 for row in rows)


def kernels_of_package():
    """(module, name) of every Triton kernel that is launched."""
    for found in pkgutil.iter_modules(rumfast.kernels.__path__):
        module = importlib.import_module(f"rumfast.kernels.{found.name}")
        yield from ((module, name) for name in vars(module) if name.endswith("_kernel"))


def arguments_of(row):
    return dict(word.split("=") for word in row["arguments"].split())


class Recorder:
    """In place of a kernel: notes that it was launched."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launched.add(self.name)


def test_no_kernel_is_left_out(monkeypatch):
    defined, launched = list(kernels_of_package()), set()
    for module, name in defined:
        monkeypatch.setattr(module, name, Recorder(name, launched))
    for case in CASES.values():
        case()
    assert len(defined) >= 8 and launched == {name for _, name in defined}


def test_arguments_are_specialised_as_the_callers_tensors_are(build_rows):
    rows = build_rows("margins C=32", "margins C=33", "margin of members")
    found = {name: arguments_of(row) for name, row in rows.items()}
    even, odd, alone = found["margins C=32"], found["margins C=33"], found["margin of members"]
    assert even["logits"] == odd["logits"] == "*fp32:16"
    assert (even["row_stride"], odd["row_stride"], alone["row_stride"]) == ("i32:16", "i32", "i32")
    assert (even["examples"], alone["member_stride"]) == ("i32:16", "i32:16")
    assert odd["class_stride"] == "1" and odd["hard_out"] == "*fp32:16" and alone["hard_out"] == "None"


def test_narrow_margins_take_ten_instructions_a_row_at_most(build_rows):
    """All SASS instructions of a warp on Hopper; without jumps it executes each at most once."""
    row = build_rows("margin of members")["margin of members"]
    rows_per_warp = int(arguments_of(row)["BLOCK_N"]) / row["options"]["num_warps"]
    assert row["jumps"] == 0 and arguments_of(row)["CLASSES"] == "10"
    assert 50 < row["instructions"] and row["instructions"] / rows_per_warp <= 10


def test_a_stand_in_driver_names_the_target_and_goes_again():
    from rumfast.kernels.backend import Target, target_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "interpret", False)
        found = {}
        for name in TARGETS:
            with builds.ahead_of_time(name):
                found[name] = target_of(torch.empty(1, device="meta"))
    assert found["gfx942"] == Target(amd=True, capability=0)
    assert [found[name].capability for name in ("sm_80", "sm_90", "sm_100")] == [80, 90, 100]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="active drivers"):
            triton.runtime.driver.active  # noqa: B018


def test_a_spill_is_a_failure(monkeypatch, capsys):
    row = HEAD | {"kernel": "x", "target": "sm_90"}
    monkeypatch.setattr(builds, "build", lambda case, target: [row])
    monkeypatch.setattr(sys, "argv", ["builds", "--kernel", "margins C=10"])
    assert builds.main() == 1
    row["spills"] = 0
    assert builds.main() == 0 and "255 registers" in capsys.readouterr().out


def test_nothing_compiled_is_an_error(monkeypatch):
    monkeypatch.setitem(builds.CASES, "nothing", lambda: None)
    with pytest.raises(RuntimeError, match="nothing: no kernel was compiled; unset TRITON_INTERPRET"):
        builds.build("nothing", "sm_90")


def test_the_record_keeps_other_versions_and_replaces_this_one(tmp_path, monkeypatch):
    path = tmp_path / "builds.json"
    for version, registers in (("3.6.0", 1), ("4.0.0", 2), ("4.0.0", 3)):
        monkeypatch.setattr(triton, "__version__", version)
        builds.save(path, [{"registers": registers}])
    assert read_json(path)["builds"] == {"3.6.0": [{"registers": 1}], "4.0.0": [{"registers": 3}]}


def test_instructions_are_counted_without_what_fills_a_kernel_up():
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
                                                                       /* 0x000e220000000800 */
        /*0010*/              @!P0 BRA 0x40 ;                          /* 0x00000a00ff017b82 */
        /*0020*/                   EXIT ;                              /* 0x00000a00ff017b82 */
        /*0030*/                   BRA 0x30;                           /* 0x00000a00ff017b82 */
        /*0040*/                   NOP;                                /* 0x00000a00ff017b82 */
    """
    assert builds.instructions(listing) == ["LDC R1, c[0x0][0x28]", "@!P0 BRA 0x40", "EXIT"]


def test_spills_are_read_from_amd_assembly():
    listing = """
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 3
    .vgpr_count:     120
    .vgpr_spill_count: 2
    """
    assert builds._amdgcn(listing) == {"registers": 120, "spills": 24, "scalars in lanes": 3}
