"""Names of what sensitive information is told apart: the 31 types of Amazon Bedrock Guardrails, and what each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["PII_TYPES", "PiiType"]

PiiType = Literal[
    "ADDRESS",
    "AGE",
    "NAME",
    "EMAIL",
    "PHONE",
    "USERNAME",
    "PASSWORD",
    "DRIVER_ID",
    "LICENSE_PLATE",
    "VEHICLE_IDENTIFICATION_NUMBER",
    "CREDIT_DEBIT_CARD_CVV",
    "CREDIT_DEBIT_CARD_EXPIRY",
    "CREDIT_DEBIT_CARD_NUMBER",
    "PIN",
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER",
    "SWIFT_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "URL",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "US_BANK_ACCOUNT_NUMBER",
    "US_BANK_ROUTING_NUMBER",
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER",
    "US_PASSPORT_NUMBER",
    "US_SOCIAL_SECURITY_NUMBER",
    "CA_HEALTH_NUMBER",
    "CA_SOCIAL_INSURANCE_NUMBER",
    "UK_NATIONAL_HEALTH_SERVICE_NUMBER",
    "UK_NATIONAL_INSURANCE_NUMBER",
    "UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER",
]

PII_TYPES: Mapping[PiiType, str] = {
    "ADDRESS": "a street with its number, or a post box, and the town after it",
    "AGE": "an age in years",
    "NAME": "a person's name: after a title or a label; anywhere, where a spaCy model is installed",
    "EMAIL": "an e-mail address",
    "PHONE": "a telephone number: international, or of a national plan",
    "USERNAME": "a login after its label",
    "PASSWORD": "a password after its label",
    "DRIVER_ID": "a driving licence's number after its label",
    "LICENSE_PLATE": "a vehicle's plate after its label",
    "VEHICLE_IDENTIFICATION_NUMBER": "17 signs with their check digit, or after a label",
    "CREDIT_DEBIT_CARD_CVV": "a card's security code after its label",
    "CREDIT_DEBIT_CARD_EXPIRY": "a month and year after the label",
    "CREDIT_DEBIT_CARD_NUMBER": "13 to 19 digits of a card network, checked by Luhn's sum",
    "PIN": "4 to 8 digits after the label",
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER": "an IBAN with its check digits",
    "SWIFT_CODE": "a BIC of an existing country, near a word for it",
    "IP_ADDRESS": "an address of version 4 or 6",
    "MAC_ADDRESS": "six bytes of hexadecimal digits",
    "URL": "a web address, with its scheme or www",
    "AWS_ACCESS_KEY": "a key's identifier",
    "AWS_SECRET_KEY": "40 signs near a word for them",
    "US_BANK_ACCOUNT_NUMBER": "8 to 17 digits near a word for an account",
    "US_BANK_ROUTING_NUMBER": "9 digits with their check digit, near a word for it",
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER": "an ITIN, written with hyphens or near a word for it",
    "US_PASSPORT_NUMBER": "9 signs near the word passport",
    "US_SOCIAL_SECURITY_NUMBER": "an SSN that can have been issued, with hyphens or near a word for it",
    "CA_HEALTH_NUMBER": "a health card's number near a word for it",
    "CA_SOCIAL_INSURANCE_NUMBER": "a SIN checked by Luhn's sum, with hyphens or near a word for it",
    "UK_NATIONAL_HEALTH_SERVICE_NUMBER": "10 digits with their check digit, near a word for it",
    "UK_NATIONAL_INSURANCE_NUMBER": "two letters, six digits and a letter, as they are issued",
    "UK_UNIQUE_TAXPAYER_REFERENCE_NUMBER": "10 digits with their check digit, near a word for it",
}
"""What is recognised of each type."""
