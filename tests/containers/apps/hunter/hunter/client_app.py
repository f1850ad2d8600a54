"""The hunter at a site."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hunter.hunt import Hunt

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Hunts, and tells."""
    report = Hunt().everything(str(message.content["config"]["doors"]).split())
    return Message(RecordDict({"report": ConfigRecord({"report": report})}), reply_to=message)
