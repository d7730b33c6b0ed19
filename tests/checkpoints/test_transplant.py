"""Parts of one model's weights in another's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import CheckpointError, parts_of, transplant

LM = {
    "embed": {"embedding": jnp.full((5, 2), 1.0)},
    "backbone": {
        "blocks": {"mlp": {"kernel": jnp.full((3, 2, 2), 2.0)}},
        "norm": {"scale": jnp.full(2, 3.0)},
    },
    "head": {"kernel": jnp.zeros((2, 5))},
}
AUTOENCODER = {
    "encoder": jax.tree.map(jnp.zeros_like, {"embed": LM["embed"], "backbone": LM["backbone"]}),
    "head": {"kernel": jnp.full((2, 5), 7.0)},
}


@pytest.mark.parametrize(
    ("part", "pairs"),
    [
        ("", [("", "")]),
        ("encoder", [("encoder", "encoder")]),
        ("encoder/backbone/", [("encoder/backbone", "encoder/backbone")]),
        (
            "backbone:encoder/backbone, embed:encoder/embed",
            [("backbone", "encoder/backbone"), ("embed", "encoder/embed")],
        ),
    ],
)
def test_parts_are_read(part, pairs):
    assert parts_of(part) == pairs


def test_a_causal_model_becomes_an_encoder():
    result = transplant(AUTOENCODER, LM, "backbone:encoder/backbone,embed:encoder/embed", "there")
    assert float(result["encoder"]["backbone"]["blocks"]["mlp"]["kernel"].min()) == 2
    assert float(result["encoder"]["embed"]["embedding"].min()) == 1
    assert float(result["head"]["kernel"].min()) == 7, "what is not named stays"


def test_blocks_alone_leave_the_token_table_as_it_is():
    result = transplant(AUTOENCODER, {"encoder": LM}, "encoder/backbone", "there")
    assert float(result["encoder"]["backbone"]["norm"]["scale"].min()) == 3
    assert float(result["encoder"]["embed"]["embedding"].max()) == 0


SHALLOW = {"encoder": {"backbone": {"blocks": {"mlp": {"kernel": jnp.full((2, 2, 2), 5.0)}}}}}


def test_a_shallower_stack_fills_the_first_layers_only_when_asked():
    with pytest.raises(CheckpointError, match="encoder/backbone/blocks/mlp/kernel' in shape"):
        transplant(AUTOENCODER, SHALLOW, "encoder/backbone", "there")
    result = transplant(AUTOENCODER, SHALLOW, "encoder/backbone", "there", fill_layers=True)
    kernel = np.asarray(result["encoder"]["backbone"]["blocks"]["mlp"]["kernel"])
    assert (kernel[:2] == 5).all()
    assert (kernel[2] == 0).all()
    assert float(result["encoder"]["backbone"]["norm"]["scale"].max()) == 0, (
        "the norm that is not there stays"
    )
    shapes = jax.eval_shape(lambda: AUTOENCODER)
    assert jax.eval_shape(lambda: result) == transplant(
        shapes, SHALLOW, "encoder/backbone", "there", fill_layers=True
    )


def test_a_deeper_stack_does_not_fit():
    deep = {
        "encoder": {
            "backbone": {
                "blocks": {"mlp": {"kernel": jnp.zeros((4, 2, 2))}},
                "norm": {"scale": jnp.zeros(2)},
            }
        }
    }
    with pytest.raises(
        CheckpointError, match=r"in shape \(4, 2, 2\), this model needs .* in \(3, 2, 2\)"
    ):
        transplant(AUTOENCODER, deep, "encoder/backbone", "there", fill_layers=True)


def test_what_is_not_there_is_named():
    with pytest.raises(
        CheckpointError, match="there has no parameter 'encoder/embed/embedding'; its parts are"
    ):
        transplant(AUTOENCODER, LM, "encoder/embed", "there")
