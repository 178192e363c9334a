"""The exceptions that a command turns into one line: the cause, then the mend."""

MOST_CHARACTERS = 2000


def shortened(text: str) -> str:
    """A sentence; of one that quotes pages of what it was given, the cause and the mend at its two ends."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"


class UserError(ValueError):
    """A fault of the input or the surroundings, found before anything was written. Exit status 2."""

    def __str__(self) -> str:
        return shortened(super().__str__())


class OtherRun(UserError):
    """What is to be gone on with was made by other settings than those given."""


class RunError(RuntimeError):
    """A run that cannot go on; what it saved is intact. Exit status 1."""


class Diverged(RunError):
    """What is trained has gone wrong: `cause` says how. A run that may be rolled back survives it."""

    def __init__(self, cause: str, mend: str) -> None:
        super().__init__(f"{cause}{mend}")
        self.cause = cause


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found too little memory on a GPU. By name, so that torch need not be imported."""
    text = str(error)
    # of CUDA, its driver and Triton, then of cuBLAS and cuDNN
    full = "CUDA" in text and ("out of memory" in text or "STATUS_ALLOC_FAILED" in text)
    if full or type(error).__name__ == "OutOfMemoryError":
        return True
    before = error.__cause__ or error.__context__  # a capture that was cut short raises another error at its end
    return isinstance(before, RuntimeError) and is_out_of_memory(before)


def is_gpu_lost(error: RuntimeError) -> bool:
    """Whether a GPU failed in a way that its process cannot recover from."""
    lost = "CUDA error" in str(error) or "CUDNN_STATUS" in str(error)
    return lost or type(error).__name__ == "AcceleratorError"


def first_line(error: Exception) -> str:
    """What an error of torch says before advice and a stack."""
    return str(error).split("\n")[0][:160]


class Interrupted(Exception):
    """A signal ended the run after its state was saved. Exit status 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class TimeUp(Interrupted):
    """The time allowed ended the run after its state was saved. Exit status 124, as of timeout(1)."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.status = 124
