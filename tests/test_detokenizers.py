"""Texts as they were before they were published in pieces."""

from __future__ import annotations

import pytest

from data.detokenizers import DETOKENIZERS


@pytest.mark.parametrize(
    "name, published, plain",
    [
        # WikiText
        ("wikitext", " = = The year = = \n", " == The year ==\n"),
        ("wikitext", "1 @,@ 000 @-@ year @.@ 5", "1,000-year.5"),
        ("wikitext", "a 2 @.@ 5 @-@ mile @-@ long way", "a 2.5-mile-long way"),
        ("wikitext", 'He ( the " big " one ) \'s here , N dogs . ', 'He (the "big" one)\'s here, 1 dogs. '),
        ("wikitext", "the players ' house and John 's dog", "the players'house and John's dog"),  # crude
        ("wikitext", "{ a } [ 1 ] ( )", "{a} [1] ()"),
        ("wikitext", "20 ° C ; wait : <unk> ! \n \n = A = \n", "20°C; wait: <unk>!\n\n= A =\n"),
        ("wikitext", "", ""),
        ("wikitext", "\n", "\n"),
        # LM1B
        ("lm1b", 'It \'s ( very ) " good " , he said : no ! Or ?', 'It\'s (very) "good", he said: no! Or?'),
        ("lm1b", "See http : / / a / b , $ 5 .", "See http://a/b, $5."),
        ("lm1b", "https : / / a / b costs £ 5 or € 6", "https://a/b costs £5 or € 6"),
        ("lm1b", "I don 't , we 'll and they 've ; John 's dog .", "I don't, we'll and they've; John's dog."),
        ("lm1b", "The end .", "The end."),
        ("lm1b", "x a . b . c .", "x a. b. c."),
        ("lm1b", "Is it [ sic ] ? Yes !\n", "Is it [sic]? Yes!"),
        ("lm1b", '" One " and " two words "', '"One" and "two words"'),
        ("lm1b", "U.S. prices rose 5.5 % .", "U.S. prices rose 5.5 % ."),
        ("lm1b", " \n", ""),
        # Penn Treebank
        ("ptb", " it 's a <unk> <unk> \n", "it's a ? ?"),
        ("ptb", "it did n't say $ N or # N", "it didn't say $1 or # N"),  # at the end N stays
        ("ptb", "it cost $ N million and # N last year", "it cost $1 million and #1 last year"),
        ("ptb", "from N N to N a year", "from 1 1 to 1 a year"),
        ("ptb", "the traders ' bonuses rose N \\/ N points", "the traders' bonuses rose 1 / 1 points"),
        ("ptb", "NASA", "NASA"),
        ("ptb", "", ""),
        # LAMBADA
        ("lambada", "“ Hi , ” she said , it’s ‘ fine ’ .\n", "\n\" Hi , \" she said , it's ' fine ' ."),
        ("lambada", "  two\n\nlines ", "\ntwo\n\nlines"),
        ("lambada", "", "\n"),
        # Scientific papers: the rules of WikiText, then those of LM1B
        (
            "scientific_papers",
            "we find ( see fig . [ fig : a ] ) that @xmath0 , as in @xcite .\n the next line .",
            "we find (see fig. [fig: a]) that @xmath0, as in @xcite .\nthe next line.",
        ),
        ("scientific_papers", "that x 's \" value \" is 1 @,@ 000 .", 'that x\'s "value" is 1,000 .'),
    ],
)  # fmt: skip
def test_detokenizers(name: str, published: str, plain: str) -> None:
    assert DETOKENIZERS[name](published) == plain


@pytest.mark.parametrize("name", sorted(DETOKENIZERS))
@pytest.mark.parametrize(
    "text",
    [
        'Nothing to do here, is there? No: it\'s done; "quite" (all).',
        "one\ntwo",
        "1,000-year-old $5",
        "",
        "\n",
    ],
)
def test_plain_text_stays(name: str, text: str) -> None:
    if name == "lambada":
        assert DETOKENIZERS[name](text) == "\n" + text.strip()
    else:
        assert DETOKENIZERS[name](text).strip() == text.strip()


@pytest.mark.parametrize(
    "name, published",
    [
        ("wikitext", ' = = A = = \n He ( the " one " ) \'s 1 @,@ 000 , N . \n'),
        ("lm1b", 'He don \'t ( " know " ) , he / she said : $ 5 ! \n'),
        ("ptb", " it 's n't $ N for the <unk> ' s \\/ \n"),
        ("lambada", " “ a ” \n"),
        ("scientific_papers", "we ( fig . [ 1 ] ) find @xmath0 , 's . \n next ."),
    ],
)
def test_once_is_enough(name: str, published: str) -> None:
    once = DETOKENIZERS[name](published)
    assert DETOKENIZERS[name](once) == once != published
