"""Parsing the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from moco_jax.plan import hlo
from moco_jax.plan.hlo import Array

TEXT = """HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sine = f32[8]{0} sine(%p)
}

%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carry = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%carry), index=1
  %kernel = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/views/sin"}
  ROOT %next = (s32[], f32[8]{0}) tuple(%carry, %kernel)
}

ENTRY %main (a: f32[8], b: bf16[2,3]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = bf16[2,3]{1,0} parameter(1)
  %loop = (s32[], f32[8]{0}) while(%a), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %sum = f32[8]{0} add(%a, %b)
}
"""


def test_every_instruction_has_the_number_of_times_it_runs():
    times = {i.name: i.times for i in hlo.instructions(TEXT)}
    assert times == {"a": 1, "b": 1, "loop": 1, "carry": 5, "x": 5} | {
        "kernel": 5, "p": 5, "sine": 5, "next": 5, "sum": 1
    }  # fmt: skip
    unknown = TEXT.replace("known_trip_count", "another")
    assert {i.name: i.times for i in hlo.instructions(unknown)}["kernel"] is None


def test_only_the_computations_asked_for_are_entered():
    names = [i.name for i in hlo.instructions(TEXT, enter=lambda i: i.opcode == "while")]
    assert names == ["a", "b", "loop", "carry", "x", "kernel", "next", "sum"]


def test_an_instruction_has_its_arrays_and_source():
    found = {i.name: i for i in hlo.instructions(TEXT)}
    assert found["sum"].operands == (Array("f32", (8,)), Array("bf16", (2, 3)))
    assert found["sum"].results == (Array("f32", (8,)),)
    assert [a.bytes for a in found["sum"].operands] == [32, 12]
    assert found["kernel"].source == "jit(step)/views/sin" and found["sum"].source == ""


def test_a_real_program_is_parsed():
    text = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert text and sum(i.opcode == "parameter" for i in hlo.instructions(text)) >= 1


def test_text_without_a_program_raises():
    with pytest.raises(ValueError, match="no entry computation"):
        list(hlo.instructions("nothing"))
