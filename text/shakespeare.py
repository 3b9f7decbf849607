"""Tiny Shakespeare: fetched, checked, and tokenized for GPT-2 into exactly llm.c's files."""

import hashlib
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from system.errors import UserError
from system.files import AtomicFile
from text.encoding import tokenize_texts
from text.shard_writer import finish
from tokens.shards import write_shard
from tokens.tokenizer import get_tokenizer

URLS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
)
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FILE = "tiny_shakespeare.txt"
VAL_TOKENS = 32_768  # llm.c, dev/data/tinyshakespeare.py


def fetch_shakespeare(folder, mirror=None):
    """The text's file in `folder`, downloaded if it isn't there. Raises `UserError` where no place gives it.

    What comes is judged by its checksum, so any mirror will do. The proxy variables are honoured.
    """
    path = folder / FILE
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    urls = (mirror, *URLS) if mirror else URLS
    for url in urls:
        print(f"fetching {url}", flush=True)
        try:
            data = read_url(url)
        except (OSError, ValueError) as error:  # no such host, refused, timed out; not a url
            print(f"  failed: {getattr(error, 'reason', error)}", flush=True)
            continue
        if hashlib.sha256(data).hexdigest() == SHA256:
            with AtomicFile(path) as f:
                f.write(data)
            return path
        print(f"  that is not the text: {len(data):,} bytes with another checksum", flush=True)
    raise UserError(
        f"Tiny Shakespeare could not be fetched from {len(urls)} place{'s' * (len(urls) > 1)}: set https_proxy, or give"
        f" --mirror URL, or save input.txt from another machine as {path}"
    )


def read_url(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, leave=False) as bar:
            data = b""
            while block := response.read(1 << 16):
                data += block
                bar.update(len(block))
    return data


def write_shakespeare(progress, path):
    """llm.c's `tiny_shakespeare_val` and `_train`. Returns what goes into `meta.json`.

    Documents are the text split at blank lines (put back after each but the last); the first tokens are validation.
    """
    start = time.monotonic()
    text = path.read_bytes().decode()
    *sections, last = text.split("\n\n")
    tokens = tokenize_texts([section + "\n\n" for section in sections] + [last], get_tokenizer("gpt2"))
    progress.save()
    for split, ids in (("val", tokens.ids[:VAL_TOKENS]), ("train", tokens.ids[VAL_TOKENS:])):
        name = f"tiny_shakespeare_{split}.{progress.request['format']}"
        progress.shards.append(write_shard(progress.out / name, ids))
    progress.documents, progress.bytes, progress.seconds = tokens.documents, tokens.bytes, time.monotonic() - start
    return finish(progress)
