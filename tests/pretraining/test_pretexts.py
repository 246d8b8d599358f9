"""Pretext tasks in the trainer: what a run contains, its cost, and how it is resumed."""

import textwrap

import jax
import pytest

from moco_jax import main
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan.program import abstract_step, counted_flops
from moco_jax.pretraining import method
from moco_jax.pretraining.pretrain import pretrain
from tests.in_process import exit_code
from tests.pretraining.test_pretrain import arrays_equal, losses
from tests.tiny import tiny_config, tiny_sources

VIT = {
    "model__name": "vit_tiny",
    "model__stem": "patch",
    "model__patch": 2,
    "model__depth": 2,
    "model__heads": 2,
    "decoder__dim": 16,
    "decoder__depth": 1,
    "decoder__heads": 2,
}
V3 = {
    "dictionary": "in_batch",
    "symmetric": True,
    "loss_scale": "2T",
    "bn_groups": 1,
    "shuffle_bn": False,
    "model__head": "mlp_bn",
    "model__hidden": 32,
    "model__predictor_layers": 2,
}
FEW = {"knn__bank": 100, "knn__queries": 50}
BASE = V3 | {  # a ViT-B at 224 pixels with fewer blocks
    "model__name": "vit_base",
    "model__stem": "patch",
    "model__width": 1.0,
    "model__patch": 16,
    "model__depth": 6,
    "model__hidden": 4096,
    "model__dim": 256,
    "decoder__depth": 4,
    "data__image_size": 224,
    "data__eval_resize": 256,
    "batch_size": 8,
}


def run(folder, devices=2, **changes):
    """Returns the final state of a run; `folder` has its losses."""
    config = tiny_config(**VIT | {"steps": 3} | changes)
    return pretrain(config, folder, devices=jax.devices()[:devices], sources=tiny_sources())


@pytest.mark.parametrize(
    ("weight", "pretext", "recipe"),
    [
        pytest.param("contrastive_weight", "masked", V3, id="no_keys"),
        pytest.param("masked_weight", "contrastive", V3, id="no_decoder"),
        pytest.param(
            "masked_weight", "contrastive", {}, marks=pytest.mark.slow, id="no_decoder_queue"
        ),
    ],
)
def test_a_weight_of_0_is_a_run_of_the_other_task_bit_for_bit(tmp_path, weight, pretext, recipe):
    both = run(tmp_path / "both", pretext="both", **{weight: 0.0}, **recipe)
    pure = run(tmp_path / "pure", pretext=pretext, **recipe)
    arrays_equal(both.params, pure.params)
    arrays_equal(both, pure)
    assert losses(tmp_path / "both") == losses(tmp_path / "pure")
    assert len(losses(tmp_path / "pure")) == 3


def state(**changes):
    layout = make_layout(jax.devices()[:1])
    return method.make_method(tiny_config(**VIT | V3 | changes), layout, 96).abstract_state()


def test_a_state_has_what_its_task_needs():
    contrastive, masked, both = (state(pretext=p) for p in ("contrastive", "masked", "both"))
    assert contrastive.params.keys() == {"backbone", "head", "predictor"}
    assert masked.params.keys() == {"backbone", "decoder"}
    assert both.params.keys() == {"backbone", "head", "predictor", "decoder"}
    assert contrastive.key_params.keys() == both.key_params.keys() == {"backbone", "head"}
    arrays = (masked.key_params, masked.key_batch_stats, masked.batch_stats, masked.dictionary)
    assert not jax.tree.leaves(arrays)


def lowered(**changes):
    """Returns the text of a step's program, with the names of its parts."""
    step, *arguments = abstract_step(
        tiny_config(**VIT | V3 | changes), make_layout(jax.devices()[:1]), 96
    )
    return step.lower(*arguments).as_text(debug_info=True)


def test_the_program_of_a_task_has_nothing_of_the_other():
    contrastive, masked, both = (lowered(pretext=p) for p in ("contrastive", "masked", "both"))
    for part in ("predictor/layer1", "head/layer1"):
        assert part in contrastive and part in both and part not in masked
    assert "decoder/pixels" in masked and "decoder/pixels" in both
    assert "decoder" not in contrastive and "mask_token" not in contrastive


def test_the_masked_step_costs_less_than_half_of_the_contrastive_one():
    layout = make_layout(jax.devices()[:1])
    flops = {
        pretext: counted_flops(tiny_config(**BASE, pretext=pretext), layout, 96) / 8
        for pretext in ("contrastive", "masked")
    }
    print({k: f"{v / 1e9:.1f} GF an image" for k, v in flops.items()})
    assert flops["masked"] < flops["contrastive"] / 2
    # By hand: a token of length d costs 24 d^2 + 4 T d a block, T tokens; the gradient twice that.
    encoder = 6 * 50 * (24 * 768**2 + 4 * 50 * 768)
    decoder = 4 * 197 * (24 * 512**2 + 4 * 197 * 512)
    maps = 2 * (49 * 768 * 768 + 50 * 768 * 512 + 196 * 512 * 768)
    assert flops["masked"] == pytest.approx(3 * (encoder + decoder + maps), rel=0.1)


@pytest.mark.parametrize("pretext", ["masked", pytest.param("both", marks=pytest.mark.slow)])
def test_a_run_stopped_and_started_again_continues_bit_for_bit(tmp_path, pretext):
    config = tmp_path / "config.py"
    config.write_text(
        textwrap.dedent(f"""
        from tests.pretraining.test_pretexts import FEW, V3, VIT
        from tests.tiny import tiny_config

        def get_config():
            return tiny_config(**VIT | V3 | FEW, pretext="{pretext}", steps=6)
        """)
    )

    def start(workdir, *changes):
        assert exit_code(main.run, f"--config={config}", f"--workdir={workdir}", *changes) == 0

    start(tmp_path / "whole")
    start(tmp_path / "parts", "--config.steps=4")
    assert max(losses(tmp_path / "parts")) == 4
    start(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
    # A finished run that is started again returns its state.
    finished = tiny_config(**VIT | V3 | FEW, pretext=pretext, steps=6)
    arrays_equal(pretrain(finished, tmp_path / "parts"), pretrain(finished, tmp_path / "whole"))
