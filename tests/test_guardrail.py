"""A guardrail's file, and what its words and patterns find."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from poise.cli import app
from poise.errors import InvalidArgument, InvalidSettings, MissingExtra
from poise.guardrail import GuardedText, Guardrail, apply_guardrail, checker_of, load_guardrail
from poise.guardrail import sensitive as sensitive_module
from poise.guardrail.findings import masked
from poise.guardrail.folded_text import fold_text
from poise.guardrail.pii_types import PII_TYPES, PiiType
from poise.guardrail.schema import Source

BANK = """\
name: bank
version: 3
messages: {input: "Ask something else.", output: "Not that."}
words:
  custom:
    - rival bank
    - {text: Projekt Nebel, input: NONE, output: SKIP}
  profanity: {action: NONE, allow: [intercourse]}
sensitive:
  types:
    - EMAIL
    - {type: US_SOCIAL_SECURITY_NUMBER, action: BLOCK}
    - {type: PHONE, input: SKIP, output: ANONYMIZE}
  regexes:
    - {name: ticket, pattern: 'TCK-\\d{4,8}', action: ANONYMIZE}
  allow: [help@bank.example]
"""


def guardrail(text: str = BANK) -> Guardrail:
    import yaml

    return Guardrail.model_validate(yaml.safe_load(text))


def applied(text: str, source: Source = "INPUT", yaml: str = BANK, **more: Any) -> dict[str, Any]:
    return apply_guardrail(checker_of(guardrail(yaml)), [GuardedText(text)], source, **more)


def found(text: str, *types: PiiType) -> list[tuple[str, str]]:
    rules = "".join(f"    - {{type: {each}, action: NONE}}\n" for each in types or get_args(PiiType))
    checker = checker_of(guardrail(f"name: a\nsensitive:\n  types:\n{rules}"))
    return [(finding.rule, text[finding.start : finding.end]) for finding in checker.find(text, "INPUT")]


class TestTheFile:
    def test_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "bank.yaml").write_text(BANK)
        bank = load_guardrail(tmp_path / "bank.yaml")
        assert bank == guardrail()
        assert bank.sensitive
        assert [(rule.type, rule.on("INPUT"), rule.on("OUTPUT")) for rule in bank.sensitive.types] == [
            ("EMAIL", "ANONYMIZE", "ANONYMIZE"),
            ("US_SOCIAL_SECURITY_NUMBER", "BLOCK", "BLOCK"),
            ("PHONE", "SKIP", "ANONYMIZE"),
        ]

    @pytest.mark.parametrize(
        ("lines", "line", "fault"),
        [
            ("words: {custom: [a, 'Ａ']}", 2, "words.custom.1 is 'Ａ', the same as custom.0; keep one"),
            ("words: {custom: ['']}", 2, "words.custom.0.text is empty; write a text, or take the line out"),
            ("words:\n  custom:\n  - {text: a, action: ANONYMIZE}", 4, "it must be 'BLOCK', 'NONE' or 'SKIP'"),
            ("words:\n  custom: [damn it]\n  profanity: {allow: [Damn it]}", 4, "custom.0 blocks; keep one"),
            ("sensitive: {types: [EMIAL]}", 2, "did you mean EMAIL?"),
            ("sensitive: {types: [EMAIL, EMAIL]}", 2, "which types.0 is too; keep one"),
            ("sensitive: {types: []}", 2, "has neither types nor regexes"),
            ("sensitive: {allow: [a@b.example]}", 2, "has neither types nor regexes"),
            ("sensitive: {types: [{type: AGE, action: BLOCK, input: NONE, output: BLOCK}]}", 2, "action says nothing"),
            ("sensitive: {types: [{type: AGE, action: SKIP}]}", 2, "it does nothing; take the rule out"),
            ("sensitive: {regexes: [{name: a, pattern: '(a'}]}", 2, "is no regular expression of RE2's (missing )"),
            ("sensitive: {regexes: [{name: a, pattern: 'a(?=b)'}]}", 2, "looks ahead or behind"),
            ("sensitive: {regexes: [{name: a, pattern: 'a*'}]}", 2, "matches empty text"),
            (f"sensitive: {{regexes: [{{name: a, pattern: '{'a' * 501}'}}]}}", 2, "at most 500 are taken"),
            ("sensitive: {regexes: [{name: a, pattern: '((x{100}){100}){9}'}]}", 2, "RE2's"),
            ("sensitive: {regexes: [{name: a, pattern: a}, {name: a, pattern: b}]}", 2, "which regexes.0 is too"),
            ("topics: [{name: a, definition: b, examples: []}]", 2, "topics.0.examples is []"),
            ("topics: [{name: a, definition: b, examples: [c, ' ']}]", 2, "topics.0.examples.1 is empty"),
            ("topics: [{name: a, definition: b, exmaples: [c]}]", 2, "did you mean examples?"),
            ("topics: [{name: a, definition: b, examples: [c], near_misses: [C]}]", 2, "on the topic and beside it"),
            ("content: [{type: PROMPT_ATTACK, output: LOW}]", 2, "attacks come with prompts"),
            ("content: [{type: HATE, input: NONE, output: NONE}]", 2, "it does nothing"),
            ("content: [{type: HATE}, {type: HATE}]", 2, "which content.0 is too"),
            ("content: [{type: HAET}]", 2, "did you mean HATE?"),
            ("messages: {input: ''}\ncontent: [{type: HATE}]", 2, "messages.input is empty"),
            ("version: 0\ncontent: [{type: HATE}]", 2, "version"),
            ("words: {}", 2, "words has neither custom words nor profanity"),
            ("streaming: Asynchronous\nwords: {custom: [a]}", 2, "did you mean asynchronous?"),
            ("streaming: asynchronous\nwindow: 96\nwords: {custom: [a]}", 3, "window holds nothing back"),
            ("grounding: [{type: relevance, threshold: 0.5}]", 2, "did you mean RELEVANCE?"),
            ("reasoning: {file: none.yaml}", 2, "reasoning.file is 'none.yaml', and there is no file"),
            ("reasoning: {file: none.yaml, writer: some-model}", 2, "as in endpoint:NAME"),
            ("content: [{type: HATE}]\njudge: {by: endpoint}", 3, "as in endpoint:NAME"),
            ("content: [{type: HATE}]\njudge: {by: served, timeout: 3}", 3, "judge.timeout is not used"),
            ("content: [{type: HATE}]\njudge: {by: 'endpoint:m', url: 'a.example:80'}", 3, "begins with http://"),
            ("description: nothing else", 1, "it has no policy; add words, sensitive, topics, content, grounding"),
        ],
    )
    def test_is_refused_with_its_line_and_a_remedy(self, tmp_path: Path, lines: str, line: int, fault: str) -> None:
        (tmp_path / "g.yaml").write_text(f"name: a\n{lines}\n")
        with pytest.raises(InvalidSettings) as caught:
            load_guardrail(tmp_path / "g.yaml")
        assert f"line {line}: " in str(caught.value)
        assert fault in str(caught.value)

    def test_needs_the_extra_only_for_what_it_uses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for package in ("ahocorasick", "glin_profanity.data.dictionary", "re2", "stdnum", "phonenumbers"):
            monkeypatch.setitem(sys.modules, package, None)
        from poise.guardrail.patterns import compile_pattern

        compile_pattern.cache_clear()
        assert guardrail("name: a\ntopics: [{name: a, definition: b, examples: [c]}]")
        for yaml in ("words: {custom: [a]}", "sensitive: {types: [PHONE]}", "words: {profanity: {}}"):
            with pytest.raises(MissingExtra, match=r"\[guardrail\]"):
                checker_of(guardrail(f"name: a\n{yaml}"))
        with pytest.raises(MissingExtra, match="google-re2"):
            guardrail("name: a\nsensitive: {regexes: [{name: a, pattern: b}]}")
        compile_pattern.cache_clear()


class TestWords:
    def words(self, text: str, *words: str) -> list[str]:
        checker = checker_of(guardrail(f"name: a\nwords: {{custom: {json.dumps(words)}}}"))
        return [text[finding.start : finding.end] for finding in checker.find(text, "INPUT")]

    @pytest.mark.parametrize(
        ("text", "word", "matches"),
        [
            ("A rival bank.", "rival bank", ["rival bank"]),
            ("The RIVAL\n  Bank", "rival bank", ["RIVAL\n  Bank"]),
            ("rival banks, rival_bank, arrival bank", "rival bank", []),
            ("ｒｉｖａｌ ｂａｎｋ", "rival bank", ["ｒｉｖａｌ ｂａｎｋ"]),
            ("ri\u200bval\u00ad bank", "rival bank", ["ri\u200bval\u00ad bank"]),
            ("r̶i̶v̶a̶l̶ bank!", "rival bank", ["r̶i̶v̶a̶l̶ bank"]),
            ("Straße and STRASSE", "straße", ["Straße", "STRASSE"]),
            ("cafe\u0301 cafe café", "café", ["cafe\u0301", "café"]),
            ("ﬁne", "fine", ["ﬁne"]),
            ("我在北京银行工作", "北京银行", ["北京银行"]),
            ("किताब किता", "किता", ["किता"]),
            ("C++ and C", "c++", ["C++"]),
            ("a-b", "a", ["a"]),
            ("Muller, Müller", "müller", ["Müller"]),
            ("ri\U000e0061val bank", "rival bank", ["ri\U000e0061val bank"]),
            ("ri\x00val\u3164 bank", "rival bank", ["ri\x00val\u3164 bank"]),
            ("Don’t tell", "don't tell", ["Don’t tell"]),
            ("an e‑mail or e–mail", "e-mail", ["e‑mail", "e–mail"]),
            ("ISTANBUL, istanbul", "İstanbul", ["ISTANBUL", "istanbul"]),
            ("_so_ and __so__, a_so, so_a", "so", ["so", "so"]),
            ('{"t": "Dear\\nrival bank"}', "rival bank", ["rival bank"]),
            ('{"t": "r\\u0069val\\u0020bank"}', "rival bank", ["r\\u0069val\\u0020bank"]),
            (r"C:\rival bank", "rival bank", ["rival bank"]),
        ],
    )
    def test_are_found_between_boundaries_whatever_their_spelling(
        self, text: str, word: str, matches: list[str]
    ) -> None:
        assert self.words(text, word) == matches

    def test_are_found_longest_first_and_once(self) -> None:
        assert self.words("new york city hall", "york", "new york city", "city hall") == ["new york city"]

    def test_that_only_report_hide_none_that_block(self) -> None:
        rules = '["rival bank", {text: the rival, action: NONE}, {text: rival bank holiday, action: NONE}]'
        checker = checker_of(guardrail(f"name: a\nwords: {{custom: {rules}}}"))
        found = [(f.rule, f.action) for f in checker.find("the rival bank holiday", "INPUT")]
        assert found == [("the rival", "NONE"), ("rival bank", "BLOCK")]

    def test_of_the_managed_list_may_be_allowed(self) -> None:
        def profane(yaml: str, text: str) -> list[str]:
            findings = checker_of(guardrail(f"name: a\nwords: {{profanity: {yaml}}}")).find(text, "OUTPUT")
            return [text[f.start : f.end] for f in findings]

        assert profane("{}", "Bullshit, and social intercourse") == ["Bullshit", "intercourse"]
        assert profane("{allow: [Intercourse]}", "Bullshit, and social intercourse") == ["Bullshit"]
        assert profane("{languages: [german]}", "So ein Arschloch, bullshit") == ["Arschloch"]

    @given(st.text(max_size=60), st.booleans())
    def test_fold_to_places_in_the_original(self, text: str, words: bool) -> None:
        folded = fold_text(text, words=words)
        for start in range(len(folded.text)):
            first, after = folded.span(start, start + 1)
            assert 0 <= first < after <= len(text)
        assert folded.text.isascii() or fold_text(folded.text, words=words).text


class TestSensitiveInformation:
    @pytest.mark.parametrize(
        ("kind", "text", "match"),
        [
            ("ADDRESS", "Send it to 12 Oak Street, Springfield, IL 62701.", "12 Oak Street, Springfield, IL 62701"),
            ("ADDRESS", "Er wohnt Hauptstraße 12, 10115 Berlin.", "Hauptstraße 12, 10115 Berlin"),
            ("AGE", "She is 34 years old", "34"),
            ("NAME", "Dear Mrs Anna Wolff, hello", "Anna Wolff"),
            ("EMAIL", "to anna.wolff+x@mail.example.co.uk.", "anna.wolff+x@mail.example.co.uk"),
            ("PHONE", "dial +44 20 7946 0958 now", "+44 20 7946 0958"),
            ("PHONE", "Call 415-555-2671.", "415-555-2671"),
            ("USERNAME", "username: anna_w", "anna_w"),
            ("PASSWORD", "the password is Hunter2!x", "Hunter2!x"),
            ("DRIVER_ID", "driver's license number: D1234567", "D1234567"),
            ("LICENSE_PLATE", "license plate ABC-1234", "ABC-1234"),
            ("VEHICLE_IDENTIFICATION_NUMBER", "It has 1M8GDM9AXKP042788 on it", "1M8GDM9AXKP042788"),
            ("CREDIT_DEBIT_CARD_CVV", "CVV: 123", "123"),
            ("CREDIT_DEBIT_CARD_EXPIRY", "expires 12/27", "12/27"),
            ("CREDIT_DEBIT_CARD_NUMBER", "4111 1111 1111 1111 12 times", "4111 1111 1111 1111"),
            ("CREDIT_DEBIT_CARD_NUMBER", "３７８２ ８２２４６３ １０００５", "３７８２ ８２２４６３ １０００５"),
            ("PIN", "My PIN is 4821.", "4821"),
            ("INTERNATIONAL_BANK_ACCOUNT_NUMBER", "to GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 32"),
            ("INTERNATIONAL_BANK_ACCOUNT_NUMBER", "to ES9121000418450200051332 by", "ES9121000418450200051332"),
            ("INTERNATIONAL_BANK_ACCOUNT_NUMBER", "ES91 2100 0418 4502 0005 1332 by", "ES91 2100 0418 4502 0005 1332"),
            ("SWIFT_CODE", "SWIFT: DEUTDEFF", "DEUTDEFF"),
            ("IP_ADDRESS", "at 192.168.0.12, or", "192.168.0.12"),
            ("IP_ADDRESS", "at 2001:db8::8a2e:370:7334 now", "2001:db8::8a2e:370:7334"),
            ("MAC_ADDRESS", "00:1B:44:11:3A:B7", "00:1B:44:11:3A:B7"),
            ("URL", "see https://a.example/b?c=d.", "https://a.example/b?c=d"),
            ("AWS_ACCESS_KEY", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
            (
                "AWS_SECRET_KEY",
                "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            ),
            ("US_BANK_ACCOUNT_NUMBER", "account number 123456789012", "123456789012"),
            ("US_BANK_ROUTING_NUMBER", "routing number 021000021", "021000021"),
            ("US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER", "ITIN 912-90-3456", "912-90-3456"),
            ("US_PASSPORT_NUMBER", "passport 563452189", "563452189"),
            ("US_SOCIAL_SECURITY_NUMBER", "536-90-4399", "536-90-4399"),
            ("CA_HEALTH_NUMBER", "health card 1234-567-897-AB", "1234-567-897-AB"),
            ("CA_SOCIAL_INSURANCE_NUMBER", "SIN 123 456 782", "123 456 782"),
            ("UK_NATIONAL_HEALTH_SERVICE_NUMBER", "NHS number 943 476 5919", "943 476 5919"),
            ("UK_NATIONAL_INSURANCE_NUMBER", "AB 12 34 56 C", "AB 12 34 56 C"),
            ("UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER", "UTR 19558 39661", "19558 39661"),
            ("US_SOCIAL_SECURITY_NUMBER", "536‑90‑4399", "536‑90‑4399"),
            ("CREDIT_DEBIT_CARD_NUMBER", "٤١١١ ١١١١ ١١١١ ١١١١", "٤١١١ ١١١١ ١١١١ ١١١١"),
            ("EMAIL", r'"Dear\nanna@mail.example"', "anna@mail.example"),
            ("EMAIL", r'"anna\u0040mail.example"', r"anna\u0040mail.example"),
        ],
    )
    def test_is_found(self, kind: PiiType, text: str, match: str) -> None:
        assert found(text, kind) == [(kind, match)]
        assert (kind, match) in found(text)

    @pytest.mark.parametrize(
        "text",
        [
            "4111 1111 1111 1112",  # Luhn's sum is wrong
            "GB82 WEST 1234 5698 7654 33",  # the check digits are
            "000-12-3456",  # was never issued
            "300.1.2.3 and 1.2.3",
            "The meeting is on 2024-01-15 at 10:30.",
            "Order 1234567890 of 12 boxes",
            "Passwords should be long; the password field is empty.",
            "It takes 30 years to pay, from 1999-2005.",
            "version 2.10.3-1, pages 100-200",
            "x = 0.1234567890123",
            "std::string and ::",
        ],
    )
    def test_is_not_seen_in_what_only_looks_like_it(self, text: str) -> None:
        assert found(text) == []

    def test_has_all_31_types_of_bedrock(self) -> None:
        assert len(get_args(PiiType)) == 31
        assert set(PII_TYPES) == set(get_args(PiiType))

    def test_of_two_types_at_one_place_is_the_one_with_a_check(self) -> None:
        assert found("NHS patient phone or number 943 476 5919") == [
            ("UK_NATIONAL_HEALTH_SERVICE_NUMBER", "943 476 5919")
        ]

    def test_what_blocks_wins_over_what_only_reports(self) -> None:
        rules = "[{type: URL, action: BLOCK}, {type: EMAIL, action: NONE}]"
        checker = checker_of(guardrail(f"name: a\nsensitive: {{types: {rules}}}"))
        findings = checker.find("see https://a.example/x@b.example", "INPUT")
        assert [finding.action for finding in findings] == ["BLOCK"]

    def test_names_come_from_a_spacy_model_where_one_is_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checker = checker_of(guardrail("name: a\nsensitive: {types: [NAME]}"))
        [note] = checker.notes
        assert "no spaCy model is installed" in note
        entry = importlib.metadata.EntryPoint("en_stub", "en_stub", "spacy_models")
        monkeypatch.setattr(sensitive_module, "entry_points", lambda group: [entry])
        person = type("Entity", (), {"label_": "PERSON", "start_char": 4, "end_char": 14})
        place = type("Entity", (), {"label_": "GPE", "start_char": 18, "end_char": 22})
        nlp = type("Pipeline", (), {"__call__": lambda self, text: type("Doc", (), {"ents": [person, place]})})
        monkeypatch.setattr(sensitive_module, "_MODELS", {"en_stub": nlp()})
        sensitive_module.name_model.cache_clear()
        try:
            [finding] = checker.find("ask Anna Wolff in Rome", "INPUT")
            assert (finding.rule, finding.start, finding.end) == ("NAME", 4, 14)
            assert checker.notes == []
        finally:
            sensitive_module.name_model.cache_clear()

    def test_own_expressions_match_what_is_written_and_what_it_looks_like(self) -> None:
        checker = checker_of(guardrail(r"""{name: a, sensitive: {regexes: [{name: n, pattern: '(№ ?|No )\d+'}]}}"""))
        for text in ("№ 12", "No 12", "Ｎｏ　１２"):
            assert [text[f.start : f.end] for f in checker.find(text, "INPUT")] == [text]

    @pytest.mark.parametrize(
        ("text", "masked_text"),
        [
            ('{"n": 4111111111111111, "t": "x"}', '{"n": "{CREDIT_DEBIT_CARD_NUMBER}", "t": "x"}'),
            ("[1, 4111111111111111]", '[1, "{CREDIT_DEBIT_CARD_NUMBER}"]'),
            ('{"t": "cards [1, 4111111111111111]"}', '{"t": "cards [1, {CREDIT_DEBIT_CARD_NUMBER}]"}'),
            (r'{"t": "\"n\": 4111111111111111"}', r'{"t": "\"n\": {CREDIT_DEBIT_CARD_NUMBER}"}'),
            (r'{"t": "Dear\nanna@mail.example"}', r'{"t": "Dear\n{EMAIL}"}'),
            ("Cards: 4111111111111111, and so on", "Cards: {CREDIT_DEBIT_CARD_NUMBER}, and so on"),
        ],
    )
    def test_is_masked_so_that_json_stays_json(self, text: str, masked_text: str) -> None:
        checker = checker_of(guardrail("name: a\nsensitive: {types: [CREDIT_DEBIT_CARD_NUMBER, EMAIL]}"))
        assert masked(text, checker.find(text, "OUTPUT")) == masked_text
        assert text[0] not in "{[" or json.loads(masked_text)

    @pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c$", "(x+x+)+y", r"^(\w+\s?)*$!"])
    def test_no_expression_is_slow_on_text_made_for_it(self, pattern: str) -> None:
        checker = checker_of(guardrail(f"name: a\nsensitive: {{regexes: [{{name: a, pattern: '{pattern}'}}]}}"))
        assert checker.find("a" * 50_000 + "x" * 50_000, "INPUT") == []


class TestApplying:
    def test_blocks_with_the_message_of_its_way(self) -> None:
        text = "My SSN is 536-90-4399, mail a@b.example"
        answer = applied(text)
        assert (answer["action"], answer["outputs"]) == ("GUARDRAIL_INTERVENED", [{"text": "Ask something else."}])
        assert applied(text, "OUTPUT")["outputs"] == [{"text": "Not that."}]
        assert answer["assessments"][0]["sensitiveInformationPolicy"]["piiEntities"] == [
            {"match": "536-90-4399", "type": "US_SOCIAL_SECURITY_NUMBER", "action": "BLOCKED", "detected": True},
            {"match": "a@b.example", "type": "EMAIL", "action": "ANONYMIZED", "detected": True},
        ]

    def test_masks_every_text(self) -> None:
        texts = [GuardedText("mail a@b.example or help@bank.example"), GuardedText("TCK-123456 by +44 20 7946 0958")]
        answer = apply_guardrail(checker_of(guardrail()), texts, "OUTPUT")
        assert answer["outputs"] == [{"text": "mail {EMAIL} or help@bank.example"}, {"text": "{ticket} by {PHONE}"}]
        assert answer["usage"]["sensitiveInformationPolicyUnits"] == 2
        assert answer["guardrailCoverage"]["textCharacters"] == {"guarded": 67, "total": 67}

    def test_only_reports_what_it_is_to_report(self) -> None:
        answer = applied("What bullshit about projekt nebel.")
        assert (answer["action"], answer["outputs"]) == ("NONE", [])
        policy = answer["assessments"][0]["wordPolicy"]
        assert [word["action"] for word in policy["customWords"] + policy["managedWordLists"]] == ["NONE", "NONE"]
        assert applied("projekt nebel", "OUTPUT")["assessments"][0].keys() == {"invocationMetrics"}

    def test_passes_what_is_fine(self) -> None:
        answer = applied("How do I open an account?")
        assert (answer["action"], answer["outputs"], answer["actionReason"]) == ("NONE", [], "No action.")

    def test_looks_at_what_is_called_guarded(self) -> None:
        def action(*texts: GuardedText) -> str:
            return str(apply_guardrail(checker_of(guardrail()), texts, "INPUT")["action"])

        bad = "a rival bank"
        assert action(GuardedText(bad, ("grounding_source",)), GuardedText("fine")) == "NONE"
        assert action(GuardedText(bad), GuardedText("fine", ("guard_content",))) == "NONE"
        assert action(GuardedText(bad, ("query", "guard_content"))) == "GUARDRAIL_INTERVENED"

    def test_says_what_matched_only_where_it_may(self) -> None:
        secret = "mail a@b.example, TCK-123456"
        shown = json.dumps(applied(secret, show_matches=False))
        assert "a@b.example" not in shown
        assert "TCK-123456" not in shown
        assert "{EMAIL}" in shown

    def test_lists_all_topics_and_content_where_it_looked(self) -> None:
        yaml = "name: a\ntopics: [{name: t, definition: d, examples: [e]}]\ncontent: [{type: HATE}]"
        assert applied("x", yaml=yaml, full=True)["assessments"][0].keys() == {"invocationMetrics"}
        full = applied("x", yaml=yaml, full=True, activations=lambda text, source: [])["assessments"][0]
        assert full["topicPolicy"]["topics"] == [{"name": "t", "type": "DENY", "action": "NONE", "detected": False}]
        [hate] = full["contentPolicy"]["filters"]
        assert (hate["type"], hate["confidence"], hate["filterStrength"]) == ("HATE", "NONE", "MEDIUM")

    def test_lists_tens_of_thousands_of_matches_in_no_time(self) -> None:
        """Each is compared with the others at once: with one after the other this took minutes."""
        text = " ".join(f"u{n}@d{n}.example u{n}@d{n}.example" for n in range(30_000))
        began = time.process_time()
        [assessment] = applied(text, yaml="name: a\nsensitive: {types: [EMAIL]}")["assessments"]
        assert len(assessment["sensitiveInformationPolicy"]["piiEntities"]) == 30_000
        assert time.process_time() - began < 20

    def test_overlapping_masks_are_one(self) -> None:
        regexes = "[{name: host, pattern: 'b[.]example/c', action: ANONYMIZE}]"
        checker = checker_of(guardrail(f"name: a\nsensitive: {{types: [EMAIL], regexes: {regexes}}}"))
        text = "see a@b.example/c now"
        assert masked(text, checker.find(text, "INPUT")) == "see {EMAIL} now"

    @pytest.mark.parametrize(
        ("texts", "fault"),
        [
            ([], "no text"),
            ([GuardedText("a" * 10_000_000)], "10,000,000 characters"),
            ([GuardedText("\ud800")], "half"),
        ],
    )
    def test_refuses_what_it_cannot_check(self, texts: list[GuardedText], fault: str) -> None:
        with pytest.raises(InvalidArgument, match=fault):
            apply_guardrail(checker_of(guardrail()), texts, "INPUT")
        with pytest.raises(InvalidArgument, match="source"):
            apply_guardrail(checker_of(guardrail()), [GuardedText("a")], "BOTH")  # type: ignore[arg-type]


class TestTheCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["guardrail", "check", *arguments])

    def test_prints_what_is_done_and_no_secret(self, tmp_path: Path) -> None:
        bank, letter = tmp_path / "bank.yaml", tmp_path / "letter.txt"
        bank.write_text(BANK)
        letter.write_text("mail a@b.example")
        done = self.run(str(bank), str(letter), "fine", "--source", "output")
        assert json.loads(done.stdout)["outputs"] == [{"text": "mail {EMAIL}"}, {"text": "fine"}]
        assert "a@b.example" not in done.output
        assert "a@b.example" in self.run(str(bank), str(letter), "--matches").stdout

    def test_refuses_a_file_that_is_cut_or_too_long(self, tmp_path: Path) -> None:
        bank, letter = tmp_path / "bank.yaml", tmp_path / "letter.txt"
        bank.write_text(BANK)
        letter.write_bytes("Grüße".encode()[:3])
        done = self.run(str(bank), str(letter))
        assert (done.exit_code, "is not UTF-8 text (byte 2" in done.output) == (2, True)
        letter.write_bytes(b"a" * 10_000_000)
        done = self.run(str(bank), str(letter))
        assert (done.exit_code, "10,000,000 bytes" in done.output) == (2, True)


@pytest.mark.parametrize("word", ["\u200b", "\u2060\u00ad", "\ud800"])
def test_a_word_without_any_sign_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="no sign that can be seen"):
        Guardrail.model_validate({"name": "a", "words": {"custom": [word]}})
