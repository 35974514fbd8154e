"""Words and texts that tell one person from the others: names of columns in several languages, dates, names, numbers.

All are compared without accents and in lower case.
"""

from __future__ import annotations

import re
import unicodedata

from harmonize.sources.tables import number_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PERSONAL = _words(
    # English
    "name names firstname lastname surname forename initials birth birthday birthdate birthyear dob yob mrn ssn phone "
    "telephone fax email mail address street zip zipcode postcode postal city town accession uid uuid guid date dates "
    "datetime timestamp insurance passport physician doctor operator comment comments note notes remark remarks "
    "patientid patientname pid pids "
    # German
    "vorname nachname familienname rufname geboren geb gebdat jahrgang anschrift adresse strasse plz wohnort "
    "stadt telefon handy arzt aerztin hausarzt untersucher bemerkung bemerkungen kommentar notiz notizen svnr datum "
    "fallnr fallid patid patnr uhrzeit kennung initialen "
    # French
    "nom noms prenom prenoms naissance naiss rue codepostal ville medecin commentaire commentaires remarque "
    "remarques ipp nip "
    # Spanish and Portuguese
    "apellido apellidos nacimiento fecha direccion calle ciudad telefono correo medico comentario comentarios "
    "observaciones dni nie nif nhc nuhsa curp nome nomes sobrenome apelido nascimento nasc endereco rua cidade "
    "telefone observacoes cpf prontuario "
    # Italian
    "cognome nominativo nascita indirizzo citta codicefiscale commento commenti osservazioni "
    # Dutch
    "naam voornaam achternaam geboorte geboortedatum geboortejaar straat woonplaats telefoon huisarts opmerking "
    "opmerkingen bsn"
)
"""Words in a column's name that say that it tells one person from the others, or is free text."""

_OF_NAMES = re.compile(
    r"(vor|nach|familien|ruf|sur|fore|first|last|patient|patienten)?(name|names|namen)|(voor|achter)?naam|(pre)?noms?"
    r"|nombres?|(sobre)?nomes?|cognome|nominativo|apell?idos?"
)
"""Words in a column's name that say that it holds people's names, where no others than these stand beside them:"""

_BESIDE_NAMES = _words("first last full family given middle maiden of the de del della du des")

_PERSONAL_TEXT = frozenset({"nombre", "nombres"})
"""Such words that mean a count in another language (French *nombre*): of a column of texts alone."""

_WITHIN = re.compile(
    r"geburts?(dat|tag|jahr|monat|ort)?|(geboorte|naissance|nacimient|nasciment).*"
    r"|.+(name|namen|naam|nummer|datum|adresse|kennzeichen)"
)
"""How words put together from several begin or end that say so too: Patientennummer, Aufnahmedatum."""

_PEOPLE = _words(
    "patient patients patienten patientin patiente proband probanden probandin versuchsperson participant person "
    "sujet soggetto sujeto sujeito paciente pacientes paziente pazienti deelnemer proefpersoon"
)
"""Words that name a person: a column of this name alone says who it is."""

_WHOSE = _PEOPLE | _words(
    "subject hospital study case record series image scan medical pat fall akte klinik krankenhaus kis dossier hopital "
    "cas caso historia clinica cartella ziekenhuis"
)
_NUMBERED = _words(
    "id ids identifier no nr num number code key uid nummer kennung numero cle identifiant identificador "
    "identificativo codigo codice"
)
_LETTERS = re.compile(r"[a-z]{4,}")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

LONG_NUMBER = 5
"""Digits of a number that may be a hospital's."""

_CLOCK_DIGITS = 9
"""Digits before the point of a number that is no measurement: seconds of a clock, or a number of somebody."""

_MONTHS = _words(
    "january february march april may june july august september october november december "
    "januar februar marz maerz mai juni juli oktober dezember januari februari maart mei augustus "
    "janvier fevrier mars avril juin juillet aout septembre octobre novembre decembre "
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre "
    "gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre "
    "janeiro fevereiro marco maio junho julho setembro outubro novembro dezembro"
)
_MONTH_WORDS = frozenset(name[:end] for name in _MONTHS for end in (3, 4, 5, None) if end is None or len(name) > end)
_BESIDE_MONTHS = _words(
    "st nd rd th of the de del di le den van t z am pm h uhr utc gmt cet cest mon tue tues wed thu thur thurs fri sat "
    "sun monday tuesday wednesday thursday friday saturday sunday mo di mi do fr sa so"
)
_PARTS_OF_DATE = re.compile(r"\d+|[a-z]+")
_YEAR = r"(?:19|20)\d\d"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*"
    rf"|{_YEAR}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?:[ t]?\d[\d:.]*)?(?:[.,]0+)?"
    rf"|{_YEAR}[ _]{_MONTH}[ _]\d{{1,2}}|\d{{1,2}}[ _.]+{_MONTH}[ _.]+{_YEAR}"
    rf"|{_YEAR}[-/]{_MONTH}|{_MONTH}[-/]{_YEAR}"
    r"|(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?(?: ?[ap]\.?m\.?| uhr)?"
    rf"|{_YEAR} ?年.*"
)
_NAME = re.compile(
    r"[^\W\d_]+\^.*"
    r"|(?P<last>[^\W\d_][^\d_,;]*), ?(?P<first>[^\W\d_][^\d_,;]*)"
    r"|(?:Dr|Prof|Mr|Mrs|Ms|Herr|Frau|Mme|Sr|Sra|Dott)\.? [^\W\d_].*"
)


def plain(text: str) -> str:
    """A text without accents.

    Example:
        >>> plain("Prénom"), plain("Straße")
        ('Prenom', 'Strasse')
    """
    taken_apart = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(letter for letter in taken_apart if not unicodedata.combining(letter))


def names_people(column: str, *, of_numbers: bool) -> bool:
    """Whether the name of a column says that it tells one person from the others.

    Args:
        column: Its name.
        of_numbers: Whether all that it holds are numbers.

    Example:
        >>> [names_people(name, of_numbers=True) for name in ("PatientName", "Fallnummer", "nombre", "volume_ml")]
        [True, True, False, False]
    """
    words = {word.casefold() for word in _WORDS.findall(plain(column))}
    return bool(
        words & _PERSONAL
        or (words & _WHOSE and words & _NUMBERED)
        or (words and words <= _PEOPLE)
        or (words & _PERSONAL_TEXT and (words & _WHOSE or not of_numbers))
        or any(_WITHIN.fullmatch(word) for word in words)
    )


def holds_names(column: str) -> bool:
    """Whether the name of a column says that it holds the names of people.

    Example:
        >>> [holds_names(column) for column in ("Nachname", "PatientName", "Proband", "comments", "nodule_name")]
        [True, True, True, False, False]
    """
    words = {word.casefold() for word in _WORDS.findall(plain(column))}
    others = {word for word in words if not _OF_NAMES.fullmatch(word)}
    return len(words) > 0 and others <= _PEOPLE | _BESIDE_NAMES


def words_of(text: str) -> frozenset[str]:
    """The words of a text that are long enough to be somebody's name.

    Example:
        >>> sorted(words_of("Müller, Jo: Infarkt_2"))
        ['infarkt', 'muller']
    """
    return frozenset(_LETTERS.findall(plain(text).casefold()))


def is_date(text: str) -> bool:
    """Whether a text is a date or a time of the day.

    Example:
        >>> [is_date(text) for text in ("05.01.2020", "2020/1/5", "5 Jan 2020", "März 2020", "10:30:05", "20200105.0")]
        [True, True, True, True, True, True]
        >>> [is_date(text) for text in ("12.5", "set 1", "may be 2", "43831")]
        [False, False, False, False]
    """
    low = plain(text).casefold().strip()
    if _DATE.fullmatch(low):
        return True
    parts = _PARTS_OF_DATE.findall(low)
    words, numbers = [part for part in parts if part.isalpha()], [part for part in parts if part.isdecimal()]
    months = [word for word in words if word in _MONTH_WORDS]
    return (
        len(months) > 0
        and all(word in _MONTH_WORDS or word in _BESIDE_MONTHS for word in words)
        and (len(numbers) > 1 or any(re.fullmatch(_YEAR, number) for number in numbers))
    )


def is_name(text: str) -> bool:
    """Whether a text is written as names of people are, with a comma, a caret or a title.

    Example:
        >>> [is_name(text) for text in ("Doe, Ada", "Doe^Ada", "Dr. Doe", "left, small", "Left, Right", "AD")]
        [True, True, True, False, True, False]
    """
    found = _NAME.fullmatch(text)
    return found is not None and (found["last"] is None or (found["last"][0].isupper() and found["first"][0].isupper()))


def measured(text: str) -> float | None:
    """A number of a table, which may have a comma for its point; None of a text.

    Example:
        >>> [measured(text) for text in ("12.5", "12,5", "1.2e7", "two")]
        [12.5, 12.5, 12000000.0, None]
    """
    return number_of(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def is_long_number(text: str) -> bool:
    """Whether a text is a number that a hospital may have given somebody, however it is written.

    Example:
        >>> [is_long_number(text) for text in ("8123456", "8123456.0", "8123456,0", "1.2e7", "-12345", "00123")]
        [True, True, True, True, True, True]
        >>> [is_long_number(text) for text in ("1234", "1405.0", "123456.7", "AD")]
        [False, False, False, False]
    """
    value = measured(text)
    if value is None:
        return False
    whole = value.is_integer() and abs(value) >= 10 ** (LONG_NUMBER - 1)
    return whole or abs(value) >= 10 ** (_CLOCK_DIGITS - 1) or (text.isdecimal() and len(text) >= LONG_NUMBER)
