"""One of two processes: ``python -m tests.train.worker localhost:PORT INDEX '{...}'``."""

from __future__ import annotations

import json
import sys

from jdl import train

if __name__ == "__main__":
    address, index, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    train.connect(address, index, 2)

    from tests.train import training

    if settings.pop("fail", None) == index:
        whole = training.data.HostBatches.__call__

        def failing(self: object, i: int) -> object:
            if i == 50:
                raise ArithmeticError("of this process alone")
            return whole(self, i)

        training.data.HostBatches.__call__ = failing
        settings["resident"] = False
    training.main(**settings)
