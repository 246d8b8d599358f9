"""The parts of a pretraining run that follow from its config: the one place that assembles them."""

import dataclasses

import optax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import Dictionary, make_dictionary
from moco_jax.contrastive.key_encoders import KeyEncoder, make_key_encoder
from moco_jax.contrastive.state import TrainState, init_state, state_shardings
from moco_jax.contrastive.train_step import Recode, TrainStep, make_recode, make_train_step
from moco_jax.models.encoder import Encoder, make_encoder
from moco_jax.parallel.mesh import Layout
from moco_jax.training.compilation import FAST_COMPILE, abstract_state, create_state
from moco_jax.training.optimizers import Schedule, make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """Encoder, key encoder, dictionary and optimizer, and the functions made from them.

    Methods are compared by identity, so that `jax.jit` can hash their functions.

    Attributes:
      config: validated.
      layout: the devices and shardings.
      encoder: of queries; keys have the same architecture.
      key_encoder: where keys come from.
      dictionary: where negatives come from.
      schedule: step -> learning rate.
      optimizer: of the trainable parameters.
    """

    config: ConfigDict
    layout: Layout
    encoder: Encoder
    key_encoder: KeyEncoder
    dictionary: Dictionary
    schedule: Schedule
    optimizer: optax.GradientTransformation

    @property
    def chance_loss(self) -> float:
        """The loss of guessing, summed over the directions of the look-up."""
        return self.dictionary.chance_loss * (2 if self.config.symmetric else 1)

    def train_step(self) -> TrainStep:
        """Returns the pure train step."""
        return make_train_step(
            self.key_encoder,
            self.dictionary,
            self.optimizer,
            self.layout,
            symmetric=self.config.symmetric,
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
    encoder = make_encoder(config)
    schedule = make_schedule(config, max(1, images // config.batch_size))
    return Method(
        config=config,
        layout=layout,
        encoder=encoder,
        key_encoder=make_key_encoder(config, encoder, layout),
        dictionary=make_dictionary(config, layout, images),
        schedule=schedule,
        optimizer=make_optimizer(config, schedule),
    )
