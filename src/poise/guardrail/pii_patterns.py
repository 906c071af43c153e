"""How each type of sensitive information looks: patterns of RE2, check digits, and words that stand near.

A number alone says little. Where its check digits leave one in ten of all numbers, or it has none, a word for it must
stand before it. Check digits are python-stdnum's, telephone numbers phonenumbers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.guardrail.pii_checks import (
    NO_LOGIN,
    check_digits,
    has_digit,
    is_card,
    is_iban,
    is_ip_address,
    is_password,
    is_secret,
    is_ssn,
    is_vehicle,
)
from poise.guardrail.pii_types import PiiType

__all__ = ["NEAR", "NEAR_AFTER", "PII_PATTERNS", "PiiPattern"]

NEAR = 60  # characters before a match, in its sentence, in which a word for it counts
NEAR_AFTER = 40  # after one that has check digits
IS = r"(?:\s*(?:is|was|are|as|lautet|ist|est|es)\b|\s*[:=#]|\s*[-–]\s)?\s*(?:[:=]\s*)?[\"'`]?"
"""What stands between a label and its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiiPattern:
    """One look of a type.

    Attributes:
        type: Type that it is of.
        pattern: In RE2's syntax; its first group, where it has one, is what is found.
        near: Pattern of words of which one must stand before it; empty for no need.
        check: Tells whether a match is one, by its text.
        weight: The match with most weight counts, where several types match at one place.
        digits: Digits that any match has at least, so that a text with fewer is not searched.
        signs: Texts of which any match has one; empty where it need have none.
    """

    type: PiiType
    pattern: str
    near: str = ""
    check: Callable[[str], bool] | None = None
    weight: int = 1
    digits: int = 0
    signs: tuple[str, ...] = ()


_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|"
    r"Parkway|Pkwy|Highway|Hwy|Close|Crescent|Cres|Gardens|Grove|Mews|Row|Circle|Cir|Trail|Trl|Plaza|Loop|Mount|"
    r"Alley|Point|Ridge|View|Walk|Park|Hill|Green|Rue|Pike|Turnpike|Expressway|Crossing|Brook|Common|Junction|Route|Summit|[A-Z][a-z]+s)"
)
_STREET_STRICT = _STREET.replace("|Brook|Common|Junction|Route|Summit|[A-Z][a-z]+s)", ")")
_WORD = r"\p{Lu}[\pL'’.-]*"
_NAME_WORD = r"\p{Lu}[\pL'’-]+"
_TOWN = rf"(?:,?\s+{_WORD}(?:\s{_WORD}){{0,3}})?"
_AFTER_STREET = (
    r"(?:,?\s*(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.?\s?#?\s?\w+)?"
    rf"(?:{_TOWN},?\s+[A-Z]{{2}}\s+\d{{5}}(?:-\d{{4}})?|{_TOWN},?\s+[A-Z]{{1,2}}\d[A-Z\d]?\s?\d[A-Z]{{2}}|"
    rf",\s+{_WORD}(?:\s{_WORD}){{0,2}})?"
)
_ACCOUNT = r"account|acct|a/c|iban|routing|deposit|checking|savings"
_HEALTH = r"nhs|national health|patient|health (?:service|number)"
_TAX = r"utr|tax(?:payer)? ref|unique tax|self.assessment|hmrc|tax return"

AWS_HEADS = ("AKIA", "ASIA", "AIDA", "AROA", "AGPA", "ANPA", "ANVA", "AIPA", "ABIA", "ACCA")

PII_PATTERNS: Sequence[PiiPattern] = (
    PiiPattern(
        type="EMAIL",
        signs=("@",),
        pattern=r"[\pL\pN_+][\pL\pN_.+%-]*@(?:[\pL\pN](?:[\pL\pN-]{0,61}[\pL\pN])?\.)+[\pL]{2,24}",
        weight=8,
    ),
    PiiPattern(
        type="URL",
        signs=("://",),
        pattern=r"(?i)\b(?:https?|ftp)://[^\s<>\"'`{}|\\^]{2,1000}[^\s<>\"'`{}|\\^.,;:!?)\]]",
        weight=6,
    ),
    PiiPattern(
        type="URL",
        pattern=r"(?i)\bwww\.[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/[^\s<>\"'`{}|\\^]*[^\s<>\"'`{}|\\^.,;:!?)\]])?",
        weight=6,
    ),
    PiiPattern(type="IP_ADDRESS", digits=4, pattern=r"\b\d{1,3}(?:\.\d{1,3}){3}\b", check=is_ip_address, weight=6),
    PiiPattern(
        type="IP_ADDRESS",
        signs=(":",),
        pattern=r"(?i)(?:[0-9a-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4})",
        check=is_ip_address,
        weight=6,
    ),
    PiiPattern(
        type="MAC_ADDRESS",
        signs=(":", "-"),
        pattern=r"(?i)\b[0-9a-f]{2}(?:(?::[0-9a-f]{2}){5}|(?:-[0-9a-f]{2}){5})\b",
        weight=8,
    ),
    PiiPattern(
        type="MAC_ADDRESS",
        digits=1,
        pattern=r"(?i)\b[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}\b",
        check=has_digit,
        weight=7,
    ),
    PiiPattern(
        type="AWS_ACCESS_KEY",
        signs=AWS_HEADS,
        pattern=rf"\b(?:{'|'.join(AWS_HEADS)})[A-Z0-9]{{16}}\b",
        weight=9,
    ),
    PiiPattern(
        type="AWS_SECRET_KEY",
        digits=1,
        pattern=r"(?:^|[^A-Za-z0-9/+])([A-Za-z0-9/+]{40})(?:$|[^A-Za-z0-9/+=])",
        near=r"aws|secret|access.?key",
        check=is_secret,
        weight=9,
    ),
    PiiPattern(
        type="CREDIT_DEBIT_CARD_NUMBER",
        digits=16,
        pattern=r"\b[2-6]\d{3}(?:[ -]?\d{4}){3}\b",
        check=is_card,
        weight=9,
    ),
    PiiPattern(
        type="CREDIT_DEBIT_CARD_NUMBER",
        digits=14,
        pattern=r"\b3[4-9]\d{2}[ -]?\d{6}[ -]?\d{4,5}\b",
        check=is_card,
        weight=9,
    ),
    PiiPattern(
        type="CREDIT_DEBIT_CARD_NUMBER",
        digits=12,
        pattern=r"\b[3-6]\d{11,18}\b",
        near=r"card|visa|master|maestro|amex|discover|payment",
        check=is_card,
        weight=9,
    ),
    PiiPattern(
        type="CREDIT_DEBIT_CARD_CVV",
        digits=3,
        pattern=rf"(?i)\b(?:cvv2?|cvc2?|csc|cid|card (?:verification|security) (?:code|value|number)|security code)(?: number| code)?{IS}(\d{{3,4}})\b",
        weight=7,
    ),
    PiiPattern(
        type="CREDIT_DEBIT_CARD_EXPIRY",
        digits=3,
        pattern=rf"(?i)\b(?:exp(?:\.|iry|ires|iration)?|valid (?:thru|through|until|to)|good (?:thru|through)|card expiration)(?: date| on| month| end)?{IS}((?:0?[1-9]|1[0-2])\s?[/-]\s?(?:20)?\d{{2}})\b",
        weight=7,
    ),
    PiiPattern(
        type="PIN",
        digits=4,
        pattern=rf"(?i)\b(?:pin(?: code| number)?|personal identification number){IS}(\d{{4,8}})\b",
        weight=6,
    ),
    PiiPattern(
        type="INTERNATIONAL_BANK_ACCOUNT_NUMBER",
        digits=2,
        pattern=r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b",
        check=is_iban,
        weight=10,
    ),
    PiiPattern(
        type="INTERNATIONAL_BANK_ACCOUNT_NUMBER",
        digits=2,
        pattern=r"(?i)\b[a-z]{2}\d{2}[a-z0-9]{11,30}\b",
        check=is_iban,
        weight=10,
    ),
    PiiPattern(
        type="SWIFT_CODE",
        pattern=r"\b[A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?\b",
        near=r"swift|bic\b|bank (?:code|identifier)|wire",
        check=check_digits("bic"),
        weight=6,
    ),
    PiiPattern(type="US_SOCIAL_SECURITY_NUMBER", digits=9, pattern=r"\b\d{3}-\d{2}-\d{4}\b", check=is_ssn, weight=8),
    PiiPattern(
        type="US_SOCIAL_SECURITY_NUMBER",
        digits=9,
        pattern=r"\b\d{3}[ .]?\d{2}[ .]?\d{4}\b",
        near=r"\bssns?\b|social.security|soc\.? sec",
        check=is_ssn,
        weight=8,
    ),
    PiiPattern(
        type="US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER",
        digits=9,
        pattern=r"\b9\d{2}-\d{2}-\d{4}\b",
        check=check_digits("us.itin"),
        weight=8,
    ),
    PiiPattern(
        type="US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER",
        digits=9,
        pattern=r"\b9\d{2}[ -]?\d{2}[ -]?\d{4}\b",
        near=r"\bitin\b|tax.?(?:payer)?.?id|individual tax|\btin\b",
        check=check_digits("us.itin"),
        weight=8,
    ),
    PiiPattern(
        type="US_BANK_ROUTING_NUMBER",
        digits=9,
        pattern=r"\b\d{4}-?\d{4}-?\d\b",
        near=r"routing|\baba\b|\brtn\b|transit",
        check=check_digits("us.rtn"),
        weight=8,
    ),
    PiiPattern(type="US_BANK_ACCOUNT_NUMBER", digits=8, pattern=r"\b\d{8,17}\b", near=_ACCOUNT, weight=2),
    PiiPattern(
        type="US_BANK_ACCOUNT_NUMBER",
        digits=6,
        pattern=r"\b\d{3,6}[ -]\d{3,6}(?:[ -]\d{2,6})?\b",
        near=r"account|acct|a/c",
        weight=2,
    ),
    PiiPattern(type="US_PASSPORT_NUMBER", digits=8, pattern=r"(?i)\b[a-z]?\d{8,9}\b", near=r"passport", weight=7),
    PiiPattern(
        type="CA_HEALTH_NUMBER",
        digits=10,
        pattern=r"(?i)\b\d{4}[ -]?\d{3}[ -]?\d{3}(?:[ -]?[a-z]{2})?\b",
        near=r"health (?:card|number|insurance)|ohip|\bphn\b|\bhcn\b|\bmsp\b|ahcip|ramq",
        weight=7,
    ),
    PiiPattern(
        type="CA_SOCIAL_INSURANCE_NUMBER",
        digits=9,
        pattern=r"\b[1-9]\d{2}-\d{3}-\d{3}\b",
        check=check_digits("ca.sin"),
        weight=8,
    ),
    PiiPattern(
        type="CA_SOCIAL_INSURANCE_NUMBER",
        digits=9,
        pattern=r"\b[1-9]\d{2}[ -]?\d{3}[ -]?\d{3}\b",
        near=r"\bsin\b|social insurance|assurance sociale|\bnas\b",
        check=check_digits("ca.sin"),
        weight=8,
    ),
    PiiPattern(
        type="UK_NATIONAL_HEALTH_SERVICE_NUMBER",
        digits=10,
        pattern=r"\b\d{3}[ -]?\d{3}[ -]?\d{4}\b",
        near=_HEALTH,
        check=check_digits("gb.nhs"),
        weight=8,
    ),
    PiiPattern(
        type="UK_NATIONAL_INSURANCE_NUMBER",
        digits=6,
        pattern=r"(?i)\b[abceghj-prstw-z][abceghj-nprstw-z] ?\d{2} ?\d{2} ?\d{2} ?[a-d]\b",
        check=lambda text: text[:2].upper() not in ("BG", "GB", "NK", "KN", "NT", "TN", "ZZ"),
        weight=8,
    ),
    PiiPattern(
        type="UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER",
        digits=10,
        pattern=r"\b\d{5} ?\d{5}[kK]?\b",
        near=_TAX,
        check=check_digits("gb.utr"),
        weight=8,
    ),
    PiiPattern(
        type="VEHICLE_IDENTIFICATION_NUMBER",
        digits=1,
        pattern=r"(?i)\b[a-hj-npr-z0-9]{17}\b",
        check=is_vehicle,
        weight=8,
    ),
    PiiPattern(
        type="VEHICLE_IDENTIFICATION_NUMBER",
        digits=1,
        pattern=r"(?i)\b[a-hj-npr-z0-9]{17}\b",
        near=r"\bvin\b|vehicle id|chassis",
        check=has_digit,
        weight=8,
    ),
    PiiPattern(
        type="LICENSE_PLATE",
        digits=1,
        pattern=rf"\b(?i:licen[sc]e plate|number plate|registration plate|plate(?: number| no\.?)?|car registration|vehicle registration|kennzeichen)(?i:(?: number| no\.?)?{IS})([A-ZÄÖÜ]{{1,3}}[ -][A-Z]{{1,2}}[ -]?\d{{1,4}}|[A-Z0-9]{{1,4}}[ -]?[A-Z0-9]{{2,5}}(?:-[A-Z0-9]{{1,4}}| [A-Z]{{2}}| \d{{1,4}})?)\b",
        check=has_digit,
        weight=6,
    ),
    PiiPattern(
        type="DRIVER_ID",
        digits=4,
        pattern=rf"\b(?i:driv(?:er'?s?|ing) ?licen[sc]e|driver'?s? id|dl|licen[sc]e)(?i:(?: number| no\.?| num| id| #)?{IS})([A-Z0-9](?:[ -]?[A-Z0-9]){{5,19}})\b",
        check=lambda text: sum(c.isdigit() for c in text) >= 4,
        weight=6,
    ),
    PiiPattern(
        type="USERNAME",
        pattern=rf"(?i)\b(?:user ?-?_?names?|user ?ids?|login(?: name| id)?|screen name|(?:twitter|github|instagram) handle){IS}(@?[\pL\pN_][\pL\pN_.-]{{2,63}})",
        check=lambda text: not NO_LOGIN.fullmatch(text),
        weight=4,
    ),
    PiiPattern(
        type="PASSWORD",
        pattern=r"(?i)\b(?:pass ?-?word|pass ?-?phrase|passwd|pwd|kennwort|passwort|mot de passe|contraseña)(?:\s*[:=]\s*|\s+(?:is|was|ist|est|es|to)\s*:?\s+)[\"'`]?([^\s\"'`<>]{4,128}[^\s\"'`<>.,;:!?)])",
        check=is_password,
        weight=5,
    ),
    PiiPattern(
        type="AGE",
        digits=1,
        pattern=r"(?i)\b(?:aged?|turned|turning)\s*:?\s+(\d{1,3})\b",
        check=lambda text: int(text) <= 120,
        weight=4,
    ),
    PiiPattern(
        type="AGE",
        digits=1,
        pattern=r"(?i)\b(\d{1,3})[ -](?:years?|yrs?)[ -]?(?:old|of age)\b|\b(\d{1,3}) ?(?:y/o|yo)\b",
        check=lambda text: int(text) <= 120,
        weight=4,
    ),
    PiiPattern(
        type="AGE",
        digits=1,
        pattern=r"(?i)\b(\d{1,3}) (?:jahre alt|ans|años)\b",
        near=r"\b(?:ai|a|as|âgée?s? de|tengo|tiene|bin|ist)\b",
        check=lambda text: int(text) <= 120,
        weight=4,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=rf"\b\d{{1,6}}[A-Za-z]?,?\s+(?:(?:North|South|East|West|N|S|E|W|NE|NW|SE|SW)\.?\s+)?(?:{_WORD}\s+){{1,4}}{_STREET_STRICT}\b\.?{_AFTER_STREET}",
        weight=7,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=rf"\b\d{{1,6}}[A-Za-z]?\s+(?:{_WORD}\s+){{1,4}}{_STREET}\b\.?{_AFTER_STREET}",
        near=r"address|live[sd]? (?:at|in)|ship|deliver|resid|mail|moved? to|office",
        weight=7,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=r"(?i)\bP\.? ?O\.? Box \d{1,6}(?:,?\s+[A-Z][\pL]+(?:\s[A-Z][\pL]+)?,?\s+[A-Z]{2}\s+\d{5})?",
        weight=7,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=rf"\b(?:{_WORD}[ -]?){{1,3}}(?:[Ss]traße|[Ss]trasse|[Ss]tr\.|[Ww]eg|[Aa]llee|[Pp]latz|[Gg]asse|[Rr]ing|[Uu]fer|[Dd]amm)\s?\d{{1,4}}\s?[a-z]?(?:[/-]\d+)?(?:,?\s+\d{{5}}\s+{_WORD}(?:\s{_WORD})?)?\b",
        weight=7,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=r"(?i)\b\d{1,4},?\s(?:bis,?\s|ter,?\s)?(?:rue|avenue|boulevard|chemin|impasse|allée|place|quai|cours)\s(?:(?:de|du|des|la|le|les|d'|l')\s?){0,2}[\pL'’-]+(?:\s[\pL'’-]+){0,3}(?:,?\s+\d{5}\s+[\pL-]+(?:\s[\pL-]+)?)?",
        weight=7,
    ),
    PiiPattern(
        type="ADDRESS",
        digits=1,
        pattern=rf"\b(?:Calle|Callejón|Avenida|Paseo|Pasaje|Plaza|Camino|Rambla|Alameda|Glorieta|Urbanización|Cuesta|Ronda|Via|Viale|Piazza|Corso|Rua|C\.)\s(?:(?:de|del|la|las|los|della|dei)\s){{0,2}}{_WORD}(?:\s{_WORD}){{0,3}},?\s(?:n[º°.]\s?)?\d{{1,4}}(?:,?\s+\d{{5}}\s+{_WORD}(?:\s{_WORD})?)?\b",
        weight=7,
    ),
    PiiPattern(
        type="NAME",
        pattern=rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Herr|Frau|Mme|Monsieur|Madame|Señora?|Sra?|Dott)\.?\s({_NAME_WORD}(?:\s(?:[A-Z]\.|(?:van|von|de|da|di|del|la)\s{_NAME_WORD}|{_NAME_WORD})){{0,2}})",
        weight=3,
    ),
    PiiPattern(
        type="NAME",
        pattern=rf"\b(?i:(?:full |first |last |sur|customer |client |patient |employee |account |contact )?name(?:\s+is|\s*[:=])|my name is|i am called|signed,?|sincerely,|regards,|mein name ist|je m'appelle|me llamo|cardholder:?|attn:?)\s+({_NAME_WORD}(?:\s(?:[A-Z]\.|(?:van|von|de|da|di|del|la)\s{_NAME_WORD}|{_NAME_WORD})){{0,3}})",
        weight=3,
    ),
)
