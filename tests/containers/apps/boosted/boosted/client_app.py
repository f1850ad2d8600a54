"""A site: lets the trees that it was sent grow on its own points, and says how good they were."""

import numpy as np
import xgboost
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SETTINGS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.5, "seed": 1}
TREES = 20


@app.train()
def train(message: Message, context: Context) -> Message:
    """Grow some trees more."""
    where = np.random.default_rng(int(context.node_config["partition-id"])).uniform(-1, 1, (512, 2))
    same = where[:, 0] * where[:, 1] > 0
    data = xgboost.DMatrix(where, label=same)
    (sent,) = message.content["trees"].to_numpy_ndarrays()
    before = xgboost.Booster(model_file=bytearray(sent)) if sent.size else None
    accuracy = 0.0 if before is None else float(np.mean((before.predict(data) > 0.5) == same))
    print(f"xgboost {xgboost.__version__}")
    grown = np.frombuffer(xgboost.train(SETTINGS, data, TREES, xgb_model=before).save_raw("ubj"), np.uint8)
    content = RecordDict({"trees": ArrayRecord([grown]), "metrics": MetricRecord({"accuracy": accuracy})})
    return Message(content, reply_to=message)
