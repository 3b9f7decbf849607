"""A GPT as EleutherAI's evaluation harness calls a model (`lm_eval`, an optional package that this module imports)."""

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from inference.perplexity import Windowing, score
from inference.requests import Prompt, generate_until, loglikelihoods
from inference.sampling import Sampling
from inference.text_samples import encode_prompt

MAX_NEW_TOKENS = 256  # where a task does not say; as in the harness


class HarnessModel(TemplateLM):
    """The harness's interface over a `LoadedModel`.

    The base class splits requests into context and continuation, so they have the same tokens as for `--model hf`.
    Under torchrun each rank gets all requests and computes its share: for the harness there is one process.
    """

    def __init__(self, model, rt, batch_tokens=None, progress=False):
        super().__init__()
        self.model, self.rt, self.batch_tokens = model, rt, batch_tokens
        self.progress = progress and rt.master  # bars
        self.max_length = model.gpt.config.block_size

    @property
    def eot_token_id(self):
        return self.model.tokenizer.eot

    @property
    def tokenizer_name(self):
        return self.model.tokenizer.name

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """[((context, continuation), context ids, continuation ids)] → [(log-probability, greedy)]."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        logprobs, greedy = loglikelihoods(self.model.gpt, pairs, self.rt, self.batch_tokens, self.shows(disable_tqdm))
        return list(zip(logprobs.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """The log-probability of each whole text, in windows of block_size tokens without overlap but for one token."""
        texts = [request.args[0] for request in requests]
        windowing = Windowing(self.max_length, self.max_length, batch_tokens=self.batch_tokens)
        totals = score(self.model.gpt, self.model.tokenizer, texts, windowing, self.rt, self.shows(disable_tqdm))
        return (-totals.loss).tolist()

    def generate_until(self, requests, disable_tqdm=False):
        """The text that continues each context."""
        prompts = [self.prompt_of(*request.args) for request in requests]
        return generate_until(self.model.gpt, self.model.tokenizer, prompts, self.rt, self.shows(disable_tqdm))

    def shows(self, disable_tqdm):
        """Whether this process shows progress bars."""
        return self.progress and not disable_tqdm

    def prompt_of(self, context, gen_kwargs):
        kwargs = normalize_gen_kwargs(gen_kwargs, MAX_NEW_TOKENS)
        sampling = Sampling(kwargs.get("temperature", 0.0), kwargs.get("top_k", 0), kwargs.get("top_p", 1.0))
        ids = tuple(encode_prompt(self.model.tokenizer, context))
        return Prompt(ids, tuple(filter(None, kwargs["until"])), kwargs["max_gen_toks"], sampling)
