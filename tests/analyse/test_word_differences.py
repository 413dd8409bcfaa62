"""Two texts word by word."""

from __future__ import annotations

from isr_dpo.analyse.differences import Words, changes, difference


def test_what_stayed_what_went_what_came() -> None:
    before, after = difference("a fish swims in a tank", "a red goldfish swims in a tank")
    assert before == (Words("a"), Words("fish", "removed"), Words("swims in a tank"))
    assert after == (Words("a"), Words("red goldfish", "added"), Words("swims in a tank"))


def test_changes_mark_nothing_where_there_is_nothing_before() -> None:
    assert changes(None, "a  fish\nswims") == (Words("a fish swims"),)
    assert changes(None, "  ") == ()
    assert changes("", "a fish") == (Words("a fish", "added"),)
    assert changes("a fish", "a fish") == (Words("a fish"),)


def test_the_words_of_both_texts_are_kept_whole() -> None:
    old, new = "<b> one two two three", "two one <i> three four"
    found = difference(old, new)
    assert " ".join(words.text for words in found.before) == old
    assert " ".join(words.text for words in found.after) == new
