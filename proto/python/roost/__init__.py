"""Roost's client for Python: the C client library behind asyncio. README.md beside this package has an example.

    async with roost.Client(["tcp://127.0.0.1:7400"], tenant="acme") as client:
        call = client.generate(messages=[roost.Message("user", "hi")], conversation="c1")
        async for batch in call:
            print(batch.text, end="")
        end = await call.end()
"""
from .client import (Batch, Call, Client, End, Error, Finish, InvalidRequest, Message, Role, RoostError, Sampling, Stats)

__all__ = ["Batch", "Call", "Client", "End", "Error", "Finish", "InvalidRequest", "Message", "Role", "RoostError", "Sampling",
           "Stats"]
