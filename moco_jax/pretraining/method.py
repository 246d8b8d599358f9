"""The parts of a pretraining run that follow from its config: the one place that assembles them."""

import dataclasses
import math
from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import Dictionary, make_dictionary
from moco_jax.contrastive.info_nce import LOSS_SCALES
from moco_jax.contrastive.key_encoders import KeyEncoder, make_key_encoder, momentum_rate
from moco_jax.contrastive.losses import make_loss
from moco_jax.contrastive.masks import make_draw_order
from moco_jax.contrastive.state import TrainState, init_state, state_shardings
from moco_jax.contrastive.train_step import Recode, TrainStep, make_recode, make_train_step
from moco_jax.models.encoder import Encoder, make_encoder
from moco_jax.models.pretexts import effective, loss_weights, masks
from moco_jax.parallel.mesh import Layout
from moco_jax.training.compilation import FAST_COMPILE, abstract_state, create_state
from moco_jax.training.optimizers import (
    Schedule,
    make_optimizer,
    make_schedule,
    matrices,
    total_steps,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """Encoder, key encoder, dictionary and optimizer, and the functions made from them.

    Methods are compared by identity, so that `jax.jit` can hash their functions.

    Attributes:
      config: validated; with the values that its pretext reads, see `effective`.
      layout: the devices and shardings.
      encoder: of queries; keys have the same architecture.
      key_encoder: where keys come from.
      dictionary: where negatives come from.
      schedule: step -> learning rate.
      momentum: step -> m of the key encoder.
      optimizer: of the trainable parameters.
    """

    config: ConfigDict
    layout: Layout
    encoder: Encoder
    key_encoder: KeyEncoder
    dictionary: Dictionary
    schedule: Schedule
    momentum: Callable[[int], float]
    optimizer: optax.GradientTransformation

    @property
    def chance_loss(self) -> float:
        """The loss of guessing: keys at random, or a patch's mean; NaN if it depends on the images.

        It is scaled and summed as the loss is.
        """
        directions, values = 2 if self.config.symmetric else 1, 3 * self.config.model.patch**2
        parts = {
            "contrastive": self.dictionary.chance_loss * directions * self.loss_scale,
            # The normalised values have an unbiased variance of 1.
            "masked": 1 - 1 / values if self.config.mask.normalize_pixels else math.nan,
        }
        return sum(weight * parts[name] for name, weight in self.weights.items())

    @property
    def weights(self) -> dict[str, float]:
        """The parts of the loss with their weights."""
        return loss_weights(self.config)

    @property
    def loss_scale(self) -> float:
        """The factor of the loss."""
        return LOSS_SCALES[self.config.loss_scale](self.config.temperature)

    def train_step(self) -> TrainStep:
        """Returns the pure train step."""
        return make_train_step(
            self.key_encoder,
            self.dictionary,
            self.optimizer,
            self.layout,
            backbone=self.encoder.backbone,
            symmetric=self.config.symmetric,
            loss=make_loss(self.dictionary, self.weights, self.loss_scale),
            draw_order=make_draw_order(self.config, self.layout) if masks(self.config) else None,
        )

    def recode(self) -> Recode:
        """Returns (state, views) -> the keys of these views by the state's encoders."""
        return make_recode(self.key_encoder, symmetric=self.config.symmetric)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state, and computes nothing."""
        return abstract_state(self._init, self.state_shardings)

    def create_state(self) -> TrainState:
        """Returns the state at step 0."""
        return create_state(self._init, self.abstract_state(), compiler_options=FAST_COMPILE)

    def state_shardings(self, state: TrainState) -> TrainState:
        """Returns the sharding of each array of a state."""
        return state_shardings(state, self.dictionary, self.layout)

    def _init(self) -> TrainState:
        return init_state(
            self.config, self.encoder, self.key_encoder, self.optimizer, self.dictionary
        )


def make_method(config: ConfigDict, layout: Layout, images: int) -> Method:
    """Returns the parts of a validated config, for a training set of this many images."""
    config = effective(config)
    encoder, per_epoch = make_encoder(config), max(1, images // config.batch_size)
    schedule, steps = make_schedule(config, per_epoch), total_steps(config, per_epoch)
    rate = jax.jit(momentum_rate(config, steps))
    constant = config.momentum_schedule == "constant"
    return Method(
        config=config,
        layout=layout,
        encoder=encoder,
        key_encoder=make_key_encoder(config, encoder, layout, steps),
        dictionary=make_dictionary(config, layout, images),
        schedule=schedule,
        momentum=lambda step: config.momentum if constant else 1.0 - float(rate(step)),
        optimizer=make_optimizer(
            config,
            schedule,
            frozen=encoder.backbone.frozen,
            decayed=None if config.decay_all else matrices,
        ),
    )
