"""The parts of a compiled step, from a hand-written program."""

from benchmarks import program_parts
from moco_jax.plan.kernels import kernels, moved

TEXT = """HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sine = f32[8]{0} sine(%p)
}

%body (carry: f32[8]) -> f32[8] {
  %carry = f32[8]{0} parameter(0)
  ROOT %jitter = f32[8]{0} fusion(%carry), calls=%fused, metadata={op_name="jit(step)/views/while/sin"}
}

ENTRY %main (a: f32[8], b: bf16[4]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = bf16[4]{0} parameter(1)
  %loop = f32[8]{0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %key = f32[8]{0} fusion(%loop), calls=%fused, metadata={op_name="jit(step)/keys/Encoder/mul"}, backend_config={"estimated_cycles":"3000000"}
  %query = f32[8]{0} fusion(%b), calls=%fused, metadata={op_name="jit(step)/gradient/jvp(Encoder)/mul"}
  %back = f32[8]{0} multiply(%key, %query), metadata={op_name="jit(step)/gradient/transpose(gradient)/jvp(Encoder)/mul"}
  %fetch = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%back)
  %fetched = f32[8]{0} copy-done(%fetch)
  %new = f32[8]{0} fusion(%back), calls=%fused, metadata={op_name="jit(step)/update/add"}
  ROOT %out = f32[8]{0} copy(%new)
}
"""  # noqa: E501


def test_each_part_has_its_kernels_bytes_and_cycles():
    run = kernels(TEXT)
    assert [k.name for k in run] == ["jitter", "key", "query", "back", "new", "out"]
    rows = {line[:18].strip(): line[18:].split() for line in program_parts.table(run).splitlines()}
    # kernels, fusions, M cycles and their fraction; GB round to 0
    expected = {
        "views": ["2", "2", "0.00", "0"],
        "keys": ["1", "1", "3.00", "100"],
        "queries and loss": ["1", "1", "0.00", "0"],
        "backward": ["1", "0", "0.00", "0"],
        "update": ["1", "1", "0.00", "0"],
        "other": ["1", "0", "0.00", "0"],
        "all": ["7", "5", "3.00", "100"],
    }
    for name, (count, fusions, cycles, fraction) in expected.items():
        row = rows[name]
        assert row[:2] == [count, fusions] and row[4:] == [cycles, f"{fraction}.0%"]


def test_a_kernel_moves_its_operands_and_results_each_time():
    found = {kernel.name: moved(kernel) for kernel in kernels(TEXT)}
    assert found == {"jitter": 128, "key": 64, "query": 40, "back": 96, "new": 64, "out": 64}


def test_the_largest_come_first():
    first, second = program_parts.largest(kernels(TEXT), 2)
    assert "3.000 M  key  jit(step)/keys/Encoder/mul" in first and "jitter" in second
