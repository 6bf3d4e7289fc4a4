"""torchrun, for processes that are to end by themselves when asked to stop.

torchrun dies of SIGUSR1, leaving its processes behind, and on SIGTERM it gives them 30 s, which a checkpoint may
exceed. Here it leaves both signals to the processes, which save and exit; it ends when they have ended. SIGINT still
ends all of them at once.

    python -m ladle.artifacts.torchrun --nproc_per_node=8 -m MODULE ARGUMENT…
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def main() -> None:
    """Run torchrun with this process's arguments."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.run import main as torchrun

    with suppress(SignalException):  # Ctrl-C, of which the process that started this tells
        torchrun()


if __name__ == "__main__":
    main()
