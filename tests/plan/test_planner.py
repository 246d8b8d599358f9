import math

import jax
import pytest

from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import nvidia, planner, program
from moco_jax.plan.forecast import Forecast, run_of
from moco_jax.plan.planner import Case, Planner
from moco_jax.plan.topology import Topology
from tests.plan.examples import GIB, example, light_config
from tests.tiny import tiny_config


def test_one_error_has_the_problems_of_all_topologies():
    topologies = [Topology("h100", (8,)), Topology("h100", (3,)), Topology("h100", (5,))]
    with pytest.raises(ValueError) as error:
        planner.prepare(tiny_config(), topologies)
    assert "h100:8" not in str(error.value)
    assert "h100:3: the config has 2 problems" in str(error.value)
    assert "batch_size=32 must be a multiple of the 5 devices" in str(error.value)


def test_images_per_chip_set_the_batch_size():
    topologies = [Topology("h100", (n,)) for n in (2, 4, 8)]
    cases = planner.prepare(tiny_config(), topologies, images_per_chip=16)
    assert [case.config.batch_size for case in cases] == [32, 64, 128]


def case_of_16_chips(**changes) -> Case:
    layout = make_layout(jax.devices()[:8])
    return Case(tiny_config(**changes), Topology("v5e", (4, 4)), layout)


def test_the_largest_valid_batch():
    case = case_of_16_chips(batch_size=1024, queue_size=65536)
    assert planner.largest_valid_batch(case, 550.6) == 512
    assert planner.largest_valid_batch(case, 7) is None


def test_a_smaller_batch_is_suggested_and_compiled(monkeypatch):
    case = case_of_16_chips(batch_size=1024, queue_size=65536)
    small, reported = example().program, []
    monkeypatch.setattr(planner, "compile_program", lambda *_: small)
    plan = Planner(1000, reported.append)
    advice, tried = plan.suggest_batch(case, example(temporary_bytes=24 * GIB))
    assert advice == "batch_size=512 fits (compiled)"
    assert tried and tried.run.batch_size == 512
    assert reported == ["v5e:4x4: compiling the step for 8 devices, 512 images ..."]
    slow = example(temporary_bytes=24 * GIB, compile_seconds=1000.0)
    assert plan.suggest_batch(case, slow) == (
        "batch_size=512 should fit (estimated, not compiled)",
        None,
    )


def test_notes_say_what_does_not_fit():
    line, *_ = planner.notes(tiny_config(), example(temporary_bytes=24 * GIB))
    assert line == "v5e:4x4: does NOT fit: needs 28.00 of 15.75 GiB"
    refused = example(temporary_bytes=math.nan, refusal="the compiler's words")
    assert "v5e:4x4: does NOT fit: the compiler's words" in planner.notes(tiny_config(), refused)


def test_notes_name_what_is_assumed_and_the_flag():
    lines = planner.notes(tiny_config(), example())
    assert "v5e:4x4: a step is expected to reach 50% of its bound (--efficiency)" in lines
    decoded = "v5e:4x4: a vCPU is expected to read and decode 400 images/s (--decodes_per_vcpu)"
    assert decoded in lines


def test_the_gpu_compiler_is_used_if_it_is_installed(monkeypatch):
    asked = []
    monkeypatch.setattr(nvidia, "has_compiler", lambda: True)
    monkeypatch.setattr(nvidia, "devices", lambda place: asked.append(place) or jax.devices()[:2])
    [case] = planner.prepare(tiny_config(), [Topology("h100", (2,))])
    assert asked == [case.topology] == [Topology("h100", (2,))] and case.layout.devices == 2

    # The GPU compiler does not count FLOPs.
    monkeypatch.setattr(
        planner, "compile_program", lambda *_: example(flops=math.nan, platform="gpu").program
    )
    monkeypatch.setattr(planner, "counted_flops", lambda *_: 7e12)
    found = Planner(1000, print).forecast(case)
    assert found.flops == 7e12
    assert "cuDNN's workspaces" in planner.notes(case.config, found)[0]


def test_operations_of_micro_batches_are_counted_before_compilation(monkeypatch):
    monkeypatch.setattr(planner, "compile_program", lambda *_: example().program)
    monkeypatch.setattr(planner, "counted_flops", lambda config, layout, _: 8e12 / layout.devices)
    assert Planner(1000, print).forecast(case_of_16_chips(microbatches=2)).flops == 1e12


@pytest.mark.slow
def test_the_tpu_compiler_compiles_for_a_slice():
    pytest.importorskip("libtpu", reason="needs the TPU compiler, pip install 'moco-jax[plan]'")
    config = light_config()
    [case] = planner.prepare(config, planner.parse_topologies(["v5e:2x2"]))
    compiled = program.compile_program(*program.abstract_step(case.config, case.layout, 1000))
    found = Forecast(case.topology, compiled, run_of(config, 1000))
    assert found.fits and found.flops > 0 and compiled.cycles > 0 and found.bound == "cycles"
    assert {"all-reduce", "all-gather", "all-to-all"} <= set(found.collective_bytes)
    with pytest.raises(ValueError, match="refuses --topology=v5e:3x5.*the first two even"):
        planner.prepare(config, planner.parse_topologies(["v5e:3x5"]))
