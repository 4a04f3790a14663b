"""Ids of tokens are found and renumbered wherever a config names one."""

from llmprune.vocabulary import settings

SAID = {
    "vocab_size": 10,
    "hidden_size": 4,
    "eos_token_id": [4, 6],
    "pad_token_id": None,
    "bos_token_id": -1,
    "suppress_tokens": [2],
    "bad_words_ids": [[4], [6, 8]],
    "use_cache": True,
    "text_config": {"vocab_size": 10, "image_token_index": 8},
    "added_tokens_decoder": {"4": {"content": "<s>"}},
}
NEW = {2: 0, 4: 1, 6: 2, 8: 3}


def test_ids_are_found() -> None:
    assert settings.ids(SAID) == {-1, 2, 4, 6, 8}


def test_ids_and_sizes_are_renumbered_and_nothing_else() -> None:
    assert settings.renumbered(SAID, NEW, {"vocab_size": 4}) == {
        "vocab_size": 4,
        "hidden_size": 4,
        "eos_token_id": [1, 2],
        "pad_token_id": None,
        "bos_token_id": -1,
        "suppress_tokens": [0],
        "bad_words_ids": [[1], [2, 3]],
        "use_cache": True,
        "text_config": {"vocab_size": 4, "image_token_index": 3},
        "added_tokens_decoder": {"1": {"content": "<s>"}},
    }
