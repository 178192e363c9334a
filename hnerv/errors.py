"""The exceptions that a command turns into one line: the cause, then the fix."""

MOST_CHARACTERS = 2000


def shortened(text: str) -> str:
    """A sentence of at most MOST_CHARACTERS; a longer one keeps the cause and the fix at its two ends."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"


class UserError(ValueError):
    """Invalid input or environment, found before anything was written. Exit status 2.

    The message is 'cause: fix'. A caller that knows a better fix takes the `cause` of an error raised with both.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(f"{cause}: {fix}" if fix else cause)
        self.cause = cause

    def __str__(self) -> str:
        return shortened(super().__str__())


class OtherRun(UserError):
    """The run to resume was created with other settings."""


class RunError(RuntimeError):
    """A run that cannot continue; what it saved is intact. Exit status 1."""


class Diverged(RunError):
    """Training has become unstable, for the reason `cause`. A run that may be rolled back continues."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}{fix}")
        self.cause = cause


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory. By name, so that torch need not be imported."""
    text = str(error)
    # of CUDA, its driver and Triton, then of cuBLAS and cuDNN
    full = "CUDA" in text and ("out of memory" in text or "STATUS_ALLOC_FAILED" in text)
    if full or type(error).__name__ == "OutOfMemoryError":
        return True
    before = error.__cause__ or error.__context__  # a CUDA graph capture that was cut short ends in another error
    return isinstance(before, RuntimeError) and is_out_of_memory(before)


def is_gpu_lost(error: RuntimeError) -> bool:
    """Whether a GPU failed in a way that its process cannot recover from."""
    lost = "CUDA error" in str(error) or "CUDNN_STATUS" in str(error)
    return lost or type(error).__name__ == "AcceleratorError"


def first_line(error: Exception) -> str:
    """The message of an error of torch, without its advice and stack."""
    return str(error).split("\n")[0][:160]


class Interrupted(Exception):
    """A signal ended the run after its state was saved. Exit status 128 + the number of the signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)  # what pickle passes to this method
        self.status = 128 + signal_number

    def __str__(self) -> str:
        return self.args[-1]


class TimeUp(Interrupted):
    """--max-minutes ended the run after its state was saved. Exit status 124, as that of timeout(1)."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.status = 124
