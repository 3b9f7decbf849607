"""Answering the harness's requests, compared with its own `--model hf` on the same weights in Hugging Face's format."""

import functools
import random
import tempfile
from pathlib import Path

from benchmarks.measure import Row, time_in_turn
from formats import hugging_face
from formats.hugging_face import quiet_transformers
from inference.eval_model import LoadedModel
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

BATCH = 16  # rows of --model hf, whose own default is 1
MAX_NEW = 48  # tokens
STOP = "k"  # in 5% of GPT-2's tokens: the lengths of random texts then vary as those of answers do


def rows(settings, rt, gpt):
    """Rows of the three kinds of requests, or one that says why there are none."""
    name = f"harness/124M/{settings.dtype}"
    try:
        import lm_eval  # noqa: F401

        tokenizer = get_tokenizer("gpt2")
    except (ImportError, UserError) as error:
        return [Row(name, "requests/s", None, None, "lm_eval --model hf", None, str(error))]
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        return measure(settings, rt, LoadedModel(gpt, tokenizer, "random", chat=False), Path(folder, "hf"), name)


def measure(settings, rt, model, folder, name):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from inference.lm_eval_adapter import HarnessModel

    hugging_face.write(folder, model.gpt.config.shape, model.gpt.to_tensors(), "gpt2")
    ours = HarnessModel(model, rt)
    dtypes = dict.fromkeys((settings.dtype, "float32"))  # float32 is the default of --model hf for these weights
    options = {"pretrained": str(folder), "batch_size": BATCH, "device": str(rt.device)}
    models = {"ours": ours} | {dtype: HFLM(dtype=dtype, **options) for dtype in dtypes}
    found = []
    for kind, (arguments, work) in requests().items():
        instances = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]
        seconds = time_in_turn(
            {name: functools.partial(getattr(m, kind), instances, disable_tqdm=True) for name, m in models.items()},
            runs=settings.runs,
            synchronize=rt.synchronize,
        )
        speed = {name: len(instances) / median for name, (median, _) in seconds.items()}
        note = f"{work}; spread {seconds['ours'][1]:.0%}"
        for dtype in dtypes:
            baseline = f"lm_eval --model hf, {dtype}, batch size {BATCH}"
            found.append(Row(f"{name}/{kind}", "requests/s", speed["ours"], speed[dtype], baseline, None, note))
    return found


def requests():
    """{kind of request: (their arguments, a note)}, of random words."""
    rng = random.Random(0)

    def text(shortest, longest):
        return " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest)))

    endings = [(context, f" {text(4, 20)}") for context in (text(8, 40) for _ in range(8)) for _ in range(4)]
    until = {"until": [STOP], "max_gen_toks": MAX_NEW, "do_sample": True, "temperature": 1.0}
    return {
        "loglikelihood": (endings, "8 contexts with 4 endings each"),
        "loglikelihood_rolling": ([(text(1500, 1500),)], "one text of 1,500 words"),
        "generate_until": (
            [(text(8, 40), until) for _ in range(BATCH)],
            f"at most {MAX_NEW} tokens each, up to a stop string in 5% of the tokens",
        ),
    }


WORDS = ("the", "a", "model", "learns", "of", "from", "tokens", "and", "one", "more", "word", "is", "not", "much")
