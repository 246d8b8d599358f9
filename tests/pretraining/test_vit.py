"""A ViT in pretraining, and its encoder in everything that uses one, by config overrides only."""

import jax
import numpy as np
import pytest

import moco_jax
from moco_jax.encoders import pretrained
from moco_jax.encoders.knn_accuracy import measure
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.pretrain import pretrain
from moco_jax.pretraining.validation import check
from moco_jax.segmentation.network import make_fcn
from moco_jax.supervised import evaluate
from moco_jax.supervised.start import begin
from tests.supervised.tiny import task_config
from tests.tiny import tiny_config, tiny_sources

VIT = {
    "model__name": "vit_tiny",
    "model__stem": "patch",
    "model__patch": 4,
    "model__depth": 2,
    "model__heads": 2,
}
CONFIG = tiny_config(**VIT, steps=3, checkpoint_every=3)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    pretrain(CONFIG, folder, devices=jax.devices()[:2], sources=tiny_sources())
    return folder


def test_its_checkpoint_is_an_encoder(workdir):
    read = pretrained.read(workdir)
    assert "block2" in read.variables["params"]["backbone"] and not read.variables.get(
        "batch_stats"
    )
    encoder = moco_jax.load(workdir, batch_size=8)
    features = encoder([np.zeros((10, 12, 3), np.uint8)] * 3)
    assert features.shape == (3, 24) and np.isfinite(features).all()


def test_a_run_continues_from_its_checkpoint_and_not_with_another_patch(workdir):
    longer, other = CONFIG.copy_and_resolve_references(), CONFIG.copy_and_resolve_references()
    longer.steps, other.model.patch = 4, 2
    state = pretrain(longer, workdir, devices=jax.devices()[:2], sources=tiny_sources())
    assert int(state.step) == 4
    with pytest.raises(ValueError, match="model.patch: 4 in the checkpoint, 2 now"):
        pretrain(other, workdir, devices=jax.devices()[:2], sources=tiny_sources())


def test_knn_measures_its_features(workdir):
    options = dict(ks=(5,), temperatures=(0.1,), layout=make_layout())
    rows = list(measure(pretrained.read(workdir), tiny_sources(), CONFIG.data, **options))
    assert 0 <= rows[0][3] <= 100


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_a_supervised_task_starts_from_it(workdir, tmp_path, task):
    config = task_config(task, workdir, steps=2, bn_groups=2)
    rows = evaluate.evaluate(
        config, tmp_path / task, devices=jax.devices()[:2], sources=tiny_sources()
    )
    assert all(0 <= row.top1 <= 100 for row in rows)


def test_fine_tuning_trains_the_patches_and_drops_paths_where_pretraining_did_not(tmp_path):
    path = write_vit(tmp_path / "a.safetensors", model__freeze_patch=True)
    begun = begin(task_config("finetune", path, model__drop_path=0.1))
    assert begun.backbone.drop_path == 0.1 and begun.backbone.frozen == ()
    assert begun.config.model.patch == 4 and begun.config.model.drop_path == 0.1


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_the_pool_may_differ_from_the_encoders(tmp_path, task):
    path = write_vit(tmp_path / "a.safetensors")
    own, mean = (begin(task_config(task, path, model__pool=pool)) for pool in ("cls", "mean"))
    assert (own.backbone.pool, mean.backbone.pool) == ("cls", "mean")
    assert mean.config.model.pool == "mean"
    assert "model.pool is mean here; the encoder was trained with cls" in mean.notes
    assert not [line for line in own.notes if "model." in line]
    averaged = write_vit(tmp_path / "mean.safetensors", model__pool="mean")
    assert begin(task_config(task, averaged)).backbone.pool == "mean"


def write_vit(path, **changes):
    """Writes a random encoder; returns its path."""
    config = tiny_config(**VIT, **changes)
    images = np.zeros((8, 8, 8, 3), np.float32)
    variables = jax.device_get(make_encoder(config).init(jax.random.key(0), images))
    pretrained.write(path, pretrained.Pretrained(config, variables, "a random one"))
    return path


def test_segmentation_refuses_it(workdir):
    begun = begin(task_config("linear", workdir))
    with pytest.raises(ValueError, match="maps of a ResNet; the encoder is a vit_tiny"):
        make_fcn(begun.config, begun.backbone)


def test_a_wrong_config_names_every_key():
    config = tiny_config(model__name="vit_tiny", model__stem="patch")
    with pytest.raises(ValueError, match="model.patch=16 must divide the image size, 8 pixels"):
        check(config, 1)
    config = tiny_config(model__name="vit_tiny", model__patch=0)
    with pytest.raises(ValueError, match=r"model.patch=0 must be a whole number from 1"):
        check(config, 1)


def test_a_single_patch_an_image_is_a_warning(caplog):
    one = {"model__name": "vit_tiny", "model__stem": "patch", "data__image_size": 16}
    check(tiny_config(**one, model__patch=8, data__eval_resize=16), 1)
    assert "patch" not in "".join(caplog.messages)
    check(tiny_config(**one, model__patch=16, data__eval_resize=16), 1)
    assert "have --config.model.patch=1 or 2 or 4 or 8" in caplog.text
    check(tiny_config(**one | {"model__stem": "conv"}, data__eval_resize=16), 1)
    assert "have --config.data.image_size=32" in caplog.text
