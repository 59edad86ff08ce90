"""The ClientApp: Flower starts a process for each message, so this one hands the message to the silo's own process."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("begin")
def begin(message: Message, context: Context) -> Message:
    """Start the silo's process, which outlives this one and inherits the socket at which it is reached."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(context))
        listener.listen()
        command = [sys.executable, str(Path(__file__).with_name("silo.py")), str(context.node_config["silo"])]
        subprocess.Popen(command, stdin=listener.fileno(), start_new_session=True)
    return answer(message, context)


@app.query("answer")
def answer(message: Message, context: Context) -> Message:
    """Hand the server's answer to the silo, and reply with the silo's next message."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address(context))
        line.sendall(message.content["manyhands"]["message"])
        line.shutdown(socket.SHUT_WR)
        reply = line.makefile("rb").read()
    return Message(RecordDict({"manyhands": ConfigRecord({"message": reply})}), reply_to=message)


def address(context: Context) -> str:
    return f"{tempfile.gettempdir()}/manyhands-{context.run_id}-{context.node_config['silo']}"
