import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.data import data_fingerprint, prepare
from hpopt.training.tokenizer import count_token_bytes, load_tokenizer, train_tokenizer

TEXTS = ["Bytes of every kind: \x00\t\n\r é ß 漢字 🙂\u2028 end", "  def f(x):\n        return x  # and spaces", "a"]


def make(tokenizer, vocab_size=400):
    """Return the tokenizer of a config; bpe is trained on TEXTS."""
    loaded = load_tokenizer(PretrainConfig(tokenizer=str(tokenizer), vocab_size=vocab_size))
    return loaded or train_tokenizer(TEXTS, vocab_size)


def refusal(function, *arguments):
    """Return the key and the problem of the ConfigError that a function raises."""
    with pytest.raises(ConfigError) as refused:
        function(*arguments)
    return refused.value.key, refused.value.problem


def save(folder, tokenizer, **config):
    """Write the files of a tokenizer as transformers does."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def sentencepiece_like(**model):
    """Return a tokenizer like Llama's: spaces as U+2581, one prepended, and <0x..> for bytes without a token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abdefnrst", "▁a", "▁s"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "s")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def n_bytes(text):
    """Return the length of a text in UTF-8."""
    return len(text.encode())


@pytest.mark.parametrize("name", ["bpe", "bytes"])
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(name):
    """Bits per byte, which is comparable across vocabularies, divides by their number."""
    tokenizer, end = make(name)
    token_bytes_V = count_token_bytes(tokenizer, 400)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert token_bytes_V[ids].sum() == n_bytes(text)
        assert tokenizer.decode(ids) == text
    assert token_bytes_V[tokenizer.token_to_id(end)] == 0


def test_token_n_of_the_byte_tokenizer_is_the_byte_n():
    tokenizer, end = make("bytes", vocab_size=257)
    for text in TEXTS:
        assert bytes(tokenizer.encode(text).ids) == text.encode()
    assert tokenizer.token_to_id(end) == 256
    assert tokenizer.get_vocab_size() == 257


def test_a_saved_tokenizer_encodes_as_before(tmp_path):
    """The end-of-document token is <|endoftext|> if the vocabulary has it, whatever the eos_token is."""
    trained, _ = make("bpe")
    loaded, end = make(save(tmp_path / "it", trained, eos_token="!"))
    assert end == "<|endoftext|>"
    assert [e.ids for e in loaded.encode_batch(TEXTS)] == [e.ids for e in trained.encode_batch(TEXTS)]


@pytest.mark.parametrize("eos_token", ["</s>", {"content": "</s>", "lstrip": False}])
def test_bytes_of_sentencepiece_tokens_are_the_bytes_of_the_text(tmp_path, eos_token):
    """With one for the prepended space. Some letters are tokens, all other bytes are <0x..>."""
    tokenizer, end = make(save(tmp_path / "it", sentencepiece_like(), eos_token=eos_token))
    token_bytes_V = count_token_bytes(tokenizer, 400)
    for text in TEXTS:
        assert token_bytes_V[tokenizer.encode(text, add_special_tokens=False).ids].sum() == 1 + n_bytes(text)
    assert end == "</s>"
    assert token_bytes_V[:3].tolist() == [0, 0, 0]


def test_files_of_an_older_format_are_read_by_transformers(tmp_path):
    """The tokenizer of GPT-2 was published as vocab.json and merges.txt."""
    trained, _ = make("bpe")
    model = json.loads(trained.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"] | {"<|endoftext|>": 0}))
    (tmp_path / "merges.txt").write_text("".join(" ".join(merge) + "\n" for merge in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    loaded, end = make(tmp_path)
    assert end == "<|endoftext|>"
    assert [e.ids for e in loaded.encode_batch(TEXTS)] == [e.ids for e in trained.encode_batch(TEXTS)]


def test_more_tokens_than_vocab_size_are_refused_with_both_numbers(tmp_path):
    """Token 300 of an embedding of 299 rows would be an asynchronous index error on a GPU."""
    trained, _ = make("bpe", vocab_size=300)
    folder = save(tmp_path / "it", trained)
    assert refusal(make, folder, 299) == ("vocab_size", f"299 is below the 300 tokens of tokenizer '{folder}'")
    make(folder, 300)
    tokenizer, _ = make(folder, 310)
    assert count_token_bytes(tokenizer, 310)[300:].tolist() == [0] * 10


def test_a_tokenizer_without_an_end_of_document_token_is_refused(tmp_path):
    """Nothing would separate the documents."""
    folder = save(tmp_path / "it", sentencepiece_like(), eos_token="<|im_end|>")
    key, problem = refusal(make, folder)
    assert key == "tokenizer"
    assert problem.endswith("has no end-of-document token: neither <|endoftext|> nor an eos_token")


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    key, problem = refusal(make, tmp_path)
    assert key == "tokenizer"
    assert problem.startswith(f"'{tmp_path}' contains no readable tokenizer: ")
    assert "\n" not in problem


def test_the_text_of_a_special_token_is_encoded_as_text():
    """A document about tokenizers must neither end in the middle nor lose bytes."""
    for name in ("bpe", "bytes"):
        tokenizer, end = make(name)
        (encoding,) = tokenizer.encode_batch_fast(["a<|endoftext|>b"])
        assert tokenizer.token_to_id(end) not in encoding.ids
        assert count_token_bytes(tokenizer, 400)[encoding.ids].sum() == len("a<|endoftext|>b")


def test_prepared_tokens_are_those_of_the_complete_text_alone(tmp_path, config_of):
    """A tokenizer.json may truncate texts, pad them and prepend a token."""
    trained, _ = make("bpe")
    plain = save(tmp_path / "plain", trained)
    trained.enable_truncation(5)
    trained.enable_padding(length=5000)
    trained.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    fancy = save(tmp_path / "fancy", trained)
    tokens = [
        prepare(config_of(tokenizer=str(folder), vocab_size=400), tmp_path / "cache").tokens["train"]
        for folder in (plain, fancy)
    ]
    assert np.array_equal(*tokens)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path, config_of):
    """Its bits per byte would be far too low."""
    words = {"[UNK]": 0, "</s>": 1, "bab": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = save(tmp_path / "it", tokenizer, eos_token="</s>")
    key, problem = refusal(prepare, config_of(tokenizer=str(folder)), tmp_path / "cache")
    assert key == "tokenizer"
    assert "its tokens of the validation text represent " in problem


def test_prepared_bytes_of_sentencepiece_and_byte_tokens_agree_with_the_text(tmp_path, config_of):
    """SentencePiece prepends a space to each document, hence the tolerance."""
    folder = save(tmp_path / "it", sentencepiece_like(), eos_token="</s>")
    for tokenizer in ("bytes", str(folder)):
        data = prepare(config_of(tokenizer=tokenizer), tmp_path / "cache")
        n_token_bytes = data.token_bytes_V[data.tokens["validation"]].sum()
        assert n_token_bytes == pytest.approx(data.meta["n_bytes"]["validation"], rel=0.01)


def test_fingerprint_follows_the_content_of_the_tokenizer(tmp_path, config_of):
    """Folders of the same name on two machines may contain different tokenizers, or end-of-document tokens."""
    trained, _ = make("bpe", vocab_size=300)
    pieces = sentencepiece_like()
    folders = [
        save(tmp_path / "a", trained),
        save(tmp_path / "b", trained),
        save(tmp_path / "c", pieces, eos_token="</s>"),
        save(tmp_path / "d", pieces, eos_token="<s>"),
    ]
    fingerprints = [data_fingerprint(config_of(tokenizer=str(folder)), tmp_path / "cache") for folder in folders]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_a_tokenizer_is_refused_before_the_documents_are_read(tmp_path, config_of):
    """Reading may take an hour. The dataset here would be refused as well."""
    folder = save(tmp_path / "it", make("bpe")[0])
    (tmp_path / "rows.jsonl").write_text("not JSON")
    config = config_of(dataset=str(tmp_path / "rows.jsonl"), tokenizer=str(folder))
    assert refusal(prepare, config, tmp_path / "cache")[0] == "vocab_size"


def test_a_changed_tokenizer_is_read_again(tmp_path, config_of):
    """The name of the folder is the same, but the tokens are not."""
    folder = save(tmp_path / "it", make("bpe", vocab_size=300)[0])
    config = config_of(tokenizer=str(folder))
    before = data_fingerprint(config, tmp_path / "cache")
    save(folder, make("bpe", vocab_size=290)[0])
    assert data_fingerprint(config, tmp_path / "cache") != before
