"""Run a function in a thread that does not keep the process from exiting."""

import concurrent.futures
import threading


def in_background(function, *args, **kwargs):
    """A future of `function(*args, **kwargs)`, computed in a daemon thread."""
    future = concurrent.futures.Future()

    def compute():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # the future raises it where the result is read
            future.set_exception(error)

    threading.Thread(target=compute, daemon=True).start()
    return future
