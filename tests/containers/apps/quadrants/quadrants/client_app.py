"""A site: descends the gradient that JAX finds, on its own points."""

import jax
import jax.numpy as jnp
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from quadrants.points import points

app = ClientApp()
STEPS, RATE = 2000, 1.0


def loss(model, where, same):
    """Cross-entropy of a network with one hidden layer."""
    weights, bias, out = model
    scores = jnp.tanh(where @ weights + bias) @ out
    return jnp.mean(jnp.logaddexp(0.0, scores) - same * scores)


@jax.jit
def descend(model, where, same):
    """The model after all steps."""

    def step(_, model):
        return [array - RATE * slope for array, slope in zip(model, jax.grad(loss)(model, where, same), strict=True)]

    return jax.lax.fori_loop(0, STEPS, step, model)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the model on this site's points."""
    where, same = points(int(context.node_config["partition-id"]))
    model = [jnp.asarray(array) for array in message.content["model"].to_numpy_ndarrays()]
    print(f"jax {jax.__version__} on {jax.default_backend()}")
    model = [jax.device_get(array) for array in descend(model, where, same)]
    return Message(RecordDict({"model": ArrayRecord(model)}), reply_to=message)
