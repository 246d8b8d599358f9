"""The collectives of hand-written HLO, and of programs whose bytes follow from their shapes."""

import jax
import jax.numpy as jnp
import pytest

from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.collectives import collectives, excess_image_moves

HEAD = "HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}\n"
ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def hlo(entry: str, *computations: str) -> str:
    body = "\n".join(f"  {line.strip()}" for line in entry.strip().splitlines())
    head = "ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0:T(128)} parameter(0)\n"
    return "\n".join([HEAD, ADD, *computations, head + body + "\n}"])


def found(*args) -> list[tuple[str, int, int | None]]:
    return [(c.kind, c.bytes, c.times) for c in collectives(hlo(*args))]


def test_a_tuple_counts_all_its_arrays():
    text = """
    %w = bf16[4,2]{1,0:T(8,128)(2,1)S(1)} constant({...})
    ROOT %all-reduce.7 = (f32[8]{0:T(128)S(1)}, /*index=1*/bf16[4,2]{1,0:T(8,128)(2,1)}) \
all-reduce(%p, %w), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add, \
metadata={op_name="jit(step)/transpose(jvp(net))/dot" stack_frame_id=3}
    """
    assert found(text) == [("all-reduce", 8 * 4 + 8 * 2, 1)]
    (collective,) = collectives(hlo(text))
    assert str(collective) == "all-reduce of f32[8] and 1 more (jit(step)/transpose(jvp(net))/dot)"


def test_a_start_and_its_done_count_once():
    text = """
    %gather-start = (f32[8]{0}, f32[64]{0:T(128)}) all-gather-start(%p), channel_id=1
    %gather-done = f32[64]{0} all-gather-done(%gather-start)
    %reduce-start = f32[64]{0} all-reduce-start(%gather-done), channel_id=2, to_apply=%add
    %reduce-done = f32[64]{0} all-reduce-done(%reduce-start)
    %permute-start = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%p), channel_id=3, source_target_pairs={{0,1},{1,0}}
    ROOT %permute-done = f32[8]{0} collective-permute-done(%permute-start)
    """
    assert found(text) == [
        ("all-gather", 256, 1),
        ("all-reduce", 256, 1),
        ("collective-permute", 32, 1),
    ]


def test_a_variadic_asynchronous_gather_counts_the_received_arrays():
    text = """
    %q = s8[2]{0} constant({1, 2})
    %start = ((f32[8]{0}, s8[2]{0}), (f32[64]{0}, s8[16]{0})) all-gather-start(%p, %q)
    ROOT %done = (f32[64]{0}, s8[16]{0}) all-gather-done(%start)
    """
    assert found(text) == [("all-gather", 64 * 4 + 16, 1)]


def test_a_reduce_scatter_counts_the_sent_array():
    text = "ROOT %r = f32[2]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add"
    assert found(text) == [("reduce-scatter", 32, 1)]


def test_shapes_next_to_the_operands_are_parsed():
    text = "ROOT %r = f32[8]{0} all-to-all(f32[8]{0} %p), dimensions={0}"
    assert found(text) == [("all-to-all", 32, 1)]


def test_collectives_in_fusions_and_asynchronous_calls_count_once():
    inner = """
%fused (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
}

%async (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %t = f32[8]{0} all-to-all(%y), channel_id=2, dimensions={0}
}
"""
    text = """
    %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%fused
    %start = ((f32[8]{0}), f32[8]{0}) async-start(%f), calls=%async
    %update = ((f32[8]{0}), f32[8]{0}) async-update(%start), calls=%async
    ROOT %done = f32[8]{0} async-done(%update), calls=%async
    """
    assert found(text, inner) == [("all-reduce", 32, 1), ("all-to-all", 32, 1)]


LOOP = """
%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%c), index=1
  %i = s32[] get-tuple-element(%c), index=0
  %r = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %r)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%c), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


@pytest.mark.parametrize(
    ("attributes", "times"),
    [
        ('body=%body, backend_config={"known_trip_count":{"n":"5"},"other":{}}', 5),
        ('body=%outer, backend_config={"known_trip_count":{"n":"5"}}', 15),
        ("body=%body", None),
        ("body=%outer", None),
    ],
)
def test_a_loop_multiplies_or_gives_none(attributes, times):
    text = f"ROOT %w = (s32[], f32[8]{{0}}) while(%p), condition=%condition, {attributes}"
    assert found(text, LOOP) == [("all-reduce", 32, times)]
    assert [c.bytes_per_step for c in collectives(hlo(text, LOOP))] == [32 * (times or 1)]


def test_text_without_an_entry_raises():
    with pytest.raises(ValueError, match="no entry computation"):
        collectives("HloModule nothing")


def compiled(function, *shapes) -> list[tuple[str, int, int | None]]:
    layout = make_layout(jax.devices()[:8])
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=layout.sharded()) for s in shapes]
    text = jax.jit(lambda *x: function(layout, *x)).lower(*arguments).compile().as_text()
    assert text
    return [(c.kind, c.bytes, c.times) for c in collectives(text)]


def test_a_compiled_sum_gather_and_transpose():
    assert compiled(lambda layout, x: layout.replicate(x.sum(0)), (64, 128)) == [
        ("all-reduce", 128 * 4, 1)
    ]
    assert compiled(lambda layout, x: layout.replicate(x * 2), (64, 128)) == [
        ("all-gather", 64 * 128 * 4, 1)
    ]
    assert compiled(lambda layout, x: layout.shard(x * 2, axis=1), (64, 128)) == [
        ("all-to-all", 64 * 128 * 4 // 8, 1)
    ]


def test_a_compiled_loop():
    def function(layout, x):
        def body(total, _):
            return total + layout.replicate((x * total[None]).sum(0)), None

        return jax.lax.scan(body, jnp.ones(128), length=6)[0]

    assert compiled(function, (64, 128)) == [("all-reduce", 128 * 4, 6)]


@pytest.mark.parametrize(
    ("shape", "moves"),
    [
        ("bf16[1,2,8,32,32,3]", False),  # 16 images, as many as a device has
        ("bf16[17,32,32,3]", True),
        ("f32[17,3,32,32]", True),
        ("f32[17,3072]", True),
        ("f32[2048,2048]", False),  # a parameter
        ("u8[1,64,64,3]", True),  # an image from the host
        ("u8[16,16]", False),
    ],
)
def test_excess_image_moves_are_found(shape, moves):
    text = f"ROOT %g = {shape}{{0}} all-gather(%p), dimensions={{0}}"
    found = collectives(hlo(text))
    assert excess_image_moves(found, images=16, view=32, canvas=64) == (found if moves else [])


def test_gradients_with_as_many_numbers_as_views_are_no_images():
    found = collectives(hlo("ROOT %g = f32[768,3072]{0} all-reduce(%p), to_apply=%add"))
    assert found and not excess_image_moves(found, images=64, view=32, canvas=64)
