"""Precision and recall by type of sensitive information on generated documents, and false alarms on ordinary texts.

    pip install faker                       # and presidio-analyzer for --presidio
    python benchmarks/pii.py --documents 1000 --data ../shared/data --texts 10000

The documents are letters, chats, forms, JSON and tables in six locales, whose entities are Faker's, python-stdnum's or
drawn here; the sentences around them were written before the patterns were last changed. A number is found where a
match of its type covers it, and a match is right where it overlaps an entity of its type. Intervals are exact, of 95 %.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from poise.guardrail.pii_types import PiiType
from poise.guardrail.sensitive import find_pii, without_overlaps
from poise.statistics.conformal import exact_interval

LOCALES = ("en_US", "en_GB", "en_CA", "de_DE", "fr_FR", "es_ES")
Span = tuple[str, int, int]
SENTENCES: dict[str, Sequence[str]] = {
    "ADDRESS": ("Please ship it to {}.", "She lives at {} with her sister.", "Our office moved to {} last year."),
    "AGE": ("He is {} years old.", "A {}-year-old patient came in.", "Age: {}", "She was aged {} at the time."),
    "NAME": ("Dear Mr. {},", "My name is {} and I have a question.", "Name: {}", "I spoke to {} on Monday about it."),
    "EMAIL": ("You can write to {}.", "From: {}", "My address is {}, please reply there."),
    "PHONE": ("Call me at {} tomorrow.", "Phone: {}", "My number changed to {} in May.", "Tel. {}"),
    "USERNAME": ("My username is {}.", "Login: {}", "user_name={}", "The account of {} was closed."),
    "PASSWORD": (
        "password: {}",
        "The password is {}, change it soon.",
        "pwd={}",
        "I logged in with {} as password.",
    ),
    "DRIVER_ID": ("Driver's license number: {}", "My driving licence is {}.", "DL {} was checked."),
    "LICENSE_PLATE": ("The license plate is {}.", "Number plate: {}", "A blue van with plate {} drove off."),
    "VEHICLE_IDENTIFICATION_NUMBER": ("VIN: {}", "The car with the number {} was recalled."),
    "CREDIT_DEBIT_CARD_CVV": ("CVV: {}", "The security code is {}.", "with cvc {} on the back"),
    "CREDIT_DEBIT_CARD_EXPIRY": ("Expires {}", "Valid thru {}", "The expiry date is {}.", "exp. {}"),
    "CREDIT_DEBIT_CARD_NUMBER": ("I paid with {}.", "Card number: {}", "Charge it to my card {} please."),
    "PIN": ("My PIN is {}.", "PIN: {}", "Enter pin code {} at the door."),
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER": ("IBAN {}", "Transfer it to {} by Friday.", "My account is {}."),
    "SWIFT_CODE": ("SWIFT: {}", "The bank's BIC is {}.", "Use {} as the SWIFT code."),
    "IP_ADDRESS": ("The server is at {}.", "Request from {} was refused.", "ip={}"),
    "MAC_ADDRESS": ("MAC {}", "The card's address is {}."),
    "URL": ("See {} for more.", "It is on {}", "Link: {}"),
    "AWS_ACCESS_KEY": ("aws_access_key_id = {}", "The key {} leaked."),
    "AWS_SECRET_KEY": ("aws_secret_access_key = {}", "The secret key is {}."),
    "US_BANK_ACCOUNT_NUMBER": ("Account number: {}", "Deposit it to account {}.", "My checking account is {}."),
    "US_BANK_ROUTING_NUMBER": ("Routing number: {}", "ABA {}", "The routing number is {}."),
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER": ("ITIN: {}", "My tax id is {}.", "I filed under {}."),
    "US_PASSPORT_NUMBER": ("Passport number: {}", "My passport {} expires soon."),
    "US_SOCIAL_SECURITY_NUMBER": ("SSN: {}", "My social security number is {}.", "I was born there, {}."),
    "CA_HEALTH_NUMBER": ("Health card number: {}", "My OHIP is {}."),
    "CA_SOCIAL_INSURANCE_NUMBER": ("SIN: {}", "My social insurance number is {}."),
    "UK_NATIONAL_HEALTH_SERVICE_NUMBER": ("NHS number: {}", "The patient's number is {}."),
    "UK_NATIONAL_INSURANCE_NUMBER": ("NI number: {}", "My national insurance number is {}.", "I gave them {}."),
    "UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER": ("UTR: {}", "My tax reference, the UTR, is {}."),
}
FILLER = (
    "Thank you for your patience.",
    "The meeting is on 12 March at 10:30 in room 204.",
    "We sold 1,250 units for $3,499.99 in 2023.",
    "The boats came in with the tide.",
    "Version 2.10.3 fixes the error on page 17.",
    "Order 48213377 was delivered in two boxes of 12.",
    "It rained from 2019-03-01 to 2019-03-09, 120 mm in all.",
)


class Entities:
    """Draws entities of every type."""

    def __init__(self, seed: int) -> None:
        from faker import Faker

        self.draw = random.Random(seed)
        Faker.seed(seed)
        self.fakers = {locale: Faker(locale) for locale in LOCALES}

    def of(self, kind: str, locale: str) -> str:
        return str(getattr(self, kind.lower(), self._other)(kind, self.fakers[locale]))

    def digits(self, n: int, first: str = "0123456789") -> str:
        return self.draw.choice(first) + "".join(self.draw.choice(string.digits) for _ in range(n - 1))

    def letters(self, n: int, of: str = string.ascii_uppercase) -> str:
        return "".join(self.draw.choice(of) for _ in range(n))

    def pick(self, *texts: str) -> str:
        return self.draw.choice(texts)

    def until(self, module: str, write: Callable[[], str]) -> str:
        """Numbers until one is valid."""
        check: Any = __import__(f"stdnum.{module}", fromlist=["is_valid"])
        while not check.is_valid(number := write()):
            pass
        return number

    def address(self, kind: str, faker: Any) -> str:
        return self.pick(faker.address().replace("\n", ", "), faker.street_address())

    def name(self, kind: str, faker: Any) -> str:
        return f"{faker.first_name()} {faker.last_name()}"

    def email(self, kind: str, faker: Any) -> str:
        return self.pick(faker.email(), faker.company_email(), faker.free_email())

    def phone(self, kind: str, faker: Any) -> str:
        return str(faker.phone_number())

    def username(self, kind: str, faker: Any) -> str:
        return str(faker.user_name())

    def password(self, kind: str, faker: Any) -> str:
        return self.pick(faker.password(length=12), faker.password(length=9, special_chars=False))

    def ip_address(self, kind: str, faker: Any) -> str:
        return self.pick(faker.ipv4(), faker.ipv6())

    def mac_address(self, kind: str, faker: Any) -> str:
        address = str(faker.mac_address())
        return self.pick(address, address.upper().replace(":", "-"))

    def url(self, kind: str, faker: Any) -> str:
        return self.pick(faker.url(), faker.uri(), "www." + faker.domain_name())

    def license_plate(self, kind: str, faker: Any) -> str:
        return str(faker.license_plate())

    def international_bank_account_number(self, kind: str, faker: Any) -> str:
        iban = str(faker.iban())
        return self.pick(iban, " ".join(iban[i : i + 4] for i in range(0, len(iban), 4)))

    def swift_code(self, kind: str, faker: Any) -> str:
        return self.until("bic", lambda: str(faker.swift(length=self.draw.choice((8, 11)))))

    def credit_debit_card_number(self, kind: str, faker: Any) -> str:
        number = str(faker.credit_card_number(card_type=self.pick("visa16", "mastercard", "amex", "discover")))
        cut = (4, 6, 5) if len(number) == 15 else (4, 4, 4, 4)
        groups, at = [], 0
        for size in cut:
            groups.append(number[at : at + size])
            at += size
        return self.pick(number, " ".join(groups), "-".join(groups))

    def vehicle_identification_number(self, kind: str, faker: Any) -> str:
        return str(self.fakers["en_US"].vin())

    def us_social_security_number(self, kind: str, faker: Any) -> str:
        ssn = str(self.fakers["en_US"].ssn())
        return self.pick(ssn, ssn, ssn.replace("-", " "))

    def us_individual_tax_identification_number(self, kind: str, faker: Any) -> str:
        return self.until("us.itin", lambda: f"9{self.digits(2)}-{self.digits(2)}-{self.digits(4)}")

    def _other(self, kind: str, faker: Any) -> str:
        d, letters = self.digits, self.letters
        secret = string.ascii_letters + string.digits + "/+"
        makers: dict[str, Callable[[], str]] = {
            "AGE": lambda: str(self.draw.randint(18, 99)),
            "DRIVER_ID": lambda: self.pick(letters(1) + d(7), letters(2) + d(6), f"{letters(1)}{d(3)}-{d(4)}-{d(4)}"),
            "CREDIT_DEBIT_CARD_CVV": lambda: self.pick(d(3), d(4)),
            "CREDIT_DEBIT_CARD_EXPIRY": lambda: f"{self.draw.randint(1, 12):02}/{self.pick('27', '2029')}",
            "PIN": lambda: self.pick(d(4), d(6)),
            "AWS_ACCESS_KEY": lambda: self.pick("AKIA", "ASIA") + letters(16, string.ascii_uppercase + "234567"),
            "AWS_SECRET_KEY": lambda: letters(40, secret),
            "US_BANK_ACCOUNT_NUMBER": lambda: d(self.draw.randint(8, 14)),
            "US_BANK_ROUTING_NUMBER": lambda: self.until("us.rtn", lambda: d(9, "0123")),
            "US_PASSPORT_NUMBER": lambda: self.pick(d(9, "12345"), letters(1) + d(8)),
            "CA_HEALTH_NUMBER": lambda: self.pick(f"{d(4)}-{d(3)}-{d(3)}-{letters(2)}", f"{d(4)} {d(3)} {d(3)}"),
            "CA_SOCIAL_INSURANCE_NUMBER": lambda: self.until(
                "ca.sin", lambda: self.pick(" ", "-").join((d(3, "1234567"), d(3), d(3)))
            ),
            "UK_NATIONAL_HEALTH_SERVICE_NUMBER": lambda: self.until("gb.nhs", lambda: f"{d(3)} {d(3)} {d(4)}"),
            "UK_NATIONAL_INSURANCE_NUMBER": lambda: self.pick(
                f"{letters(2, 'ABCEHJKL')}{d(6)}{letters(1, 'ABCD')}",
                f"{letters(2, 'ABCEHJKL')} {d(2)} {d(2)} {d(2)} {letters(1, 'ABCD')}",
            ),
            "UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER": lambda: self.until("gb.utr", lambda: d(10)),
        }
        return makers[kind]()


def document(entities: Entities, number: int) -> tuple[str, list[Span]]:
    """A text with four to seven entities, and their places."""
    draw, locale = entities.draw, LOCALES[number % len(LOCALES)]
    kinds = [get_args(PiiType)[(number * 7 + i) % 31] for i in range(draw.randint(4, 7))]
    form = ("letter", "chat", "form", "json", "table")[number % 5]
    text, spans = "", []
    for kind in kinds:
        value = entities.of(kind, locale)
        sentence = draw.choice(SENTENCES[kind])
        if form == "json":
            sentence = json.dumps(sentence)
        before, _, after = sentence.partition("{}")
        lead = {"letter": "", "chat": draw.choice(("user: ", "agent: ")), "form": "- ", "json": "  ", "table": "| "}[
            form
        ]
        text += lead + before
        spans.append((kind, len(text), len(text) + len(value)))
        text += value + after + {"letter": " ", "table": " |\n"}.get(form, "\n")
        if draw.random() < 0.6:
            text += draw.choice(FILLER) + (" " if form == "letter" else "\n")
    return text, spans


def ours(text: str) -> list[Span]:
    matches = sorted(find_pii(text, get_args(PiiType), REGIONS), key=lambda m: (-m.weight, m.start - m.end, m.start))
    return [(m.type, m.start, m.end) for m in without_overlaps(matches)]


REGIONS = ("US", "GB", "CA", "DE", "FR", "ES")
PRESIDIO = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CREDIT_DEBIT_CARD_NUMBER",
    "IBAN_CODE": "INTERNATIONAL_BANK_ACCOUNT_NUMBER",
    "IP_ADDRESS": "IP_ADDRESS",
    "URL": "URL",
    "US_SSN": "US_SOCIAL_SECURITY_NUMBER",
    "US_ITIN": "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER",
    "UK_NHS": "UK_NATIONAL_HEALTH_SERVICE_NUMBER",
    "UK_NINO": "UK_NATIONAL_INSURANCE_NUMBER",
}


def presidio() -> Callable[[str], list[Span]]:
    """presidio-analyzer's recognisers that need no language model, with scores of .4 and more."""
    from presidio_analyzer import predefined_recognizers as known

    names = ["Email", "Phone", "CreditCard", "Iban", "Ip", "Url", "UsSsn", "UsItin"]
    kinds = [getattr(known, f"{name}Recognizer") for name in names] + [known.NhsRecognizer, known.UkNinoRecognizer]
    recognizers = [kind() for kind in kinds]

    def find(text: str) -> list[Span]:
        results = [r for each in recognizers for r in each.analyze(text, each.supported_entities, None)]
        return [(PRESIDIO[r.entity_type], r.start, r.end) for r in results if r.score >= 0.4]

    return find


def measured(documents: Sequence[tuple[str, list[Span]]], find: Callable[[str], list[Span]]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, spans in documents:
        matches = find(text)
        for kind, start, end in spans:
            covered = {i for k, s, e in matches if k == kind for i in range(max(s, start), min(e, end))}
            counts[kind]["entities"] += 1
            counts[kind]["found"] += len(covered) >= 0.9 * (end - start)
        for kind, start, end in matches:
            counts[kind]["matches"] += 1
            counts[kind]["right"] += any(k == kind and s < end and e > start for k, s, e in spans)
    return counts


def share(part: int, n: int) -> str:
    if not n:
        return "–"
    low, high = exact_interval(part, n)
    return f"{part / n:.3f} [{low:.3f}, {high:.3f}] of {n}"


def ordinary_texts(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Texts of ordinary data sets: every string of 20 characters or more, drawn without repeats."""
    texts: set[str] = set()
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            waiting: list[Any] = [json.loads(line)]
            while waiting:
                value = waiting.pop()
                waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                if isinstance(value, str) and len(value) >= 20:
                    texts.add(value)
    yield from random.Random(seed).sample(sorted(texts), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="folder of JSONL files with ordinary texts")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--presidio", action="store_true", help="measure presidio-analyzer on the same documents")
    parser.add_argument("--misses", type=int, default=0, help="show so many entities that were not found")
    given = parser.parse_args()
    entities = Entities(given.seed)
    documents = [document(entities, number) for number in range(given.documents)]
    for name, find in {"poise": ours, **({"presidio": presidio()} if given.presidio else {})}.items():
        began = time.perf_counter()
        counts = measured(documents, find)
        each = (time.perf_counter() - began) * 1000 / len(documents)
        size = sum(len(text) for text, _ in documents) // len(documents)
        print(f"\n{name}: {len(documents)} documents of {size} characters, {each:.1f} ms each\n")
        print("| type | recall | precision |\n|---|---|---|")
        for kind in get_args(PiiType):
            c = counts[kind]
            if c["matches"] or name == "poise":
                print(f"| {kind} | {share(c['found'], c['entities'])} | {share(c['right'], c['matches'])} |")
        total: Counter[str] = sum(counts.values(), Counter())
        print(f"| all | {share(total['found'], total['entities'])} | {share(total['right'], total['matches'])} |")
    shown = 0
    for text, spans in documents:
        matches = ours(text)
        for kind, start, end in spans:
            if shown < given.misses and not any(k == kind and s <= start and e >= end for k, s, e in matches):
                shown += 1
                print(kind, repr(text[max(start - 40, 0) : start]), repr(text[start:end]))
    if given.data:
        alarms: Counter[str] = Counter()
        examples: dict[str, list[str]] = defaultdict(list)
        for text in ordinary_texts(given.data, given.texts, given.seed):
            matches = ours(text)
            alarms.update({kind for kind, *_ in matches})
            alarms["any"] += bool(matches)
            for kind, start, end in matches:
                examples[kind].append(text[start:end])
        print(f"\nTexts with a match, of {given.texts} ordinary ones:\n\n| type | share |\n|---|---|")
        for kind, n in alarms.most_common():
            print(f"| {kind} | {share(n, given.texts)} |")
            if given.misses:
                print(examples[kind][: given.misses])


if __name__ == "__main__":
    main()
