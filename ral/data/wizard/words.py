"""Words of headers and cells that the description of a user's own table recognises: English, German, French, Spanish.

A word is looked up without case, accents, spaces and punctuation (`folded`).
"""

import re
import unicodedata
from collections.abc import Mapping

from ral.labels import ALIASES, LABEL_SETS, NO_FINDING


def folded(text: str) -> str:
    """Letters and digits of a text, without case and accents: p.-a. is pa, Geschlecht (m/w) is geschlechtmw."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return re.sub(r"[\W_]+", "", "".join(sign for sign in decomposed if not unicodedata.combining(sign)))


# Key of data.table -> words of a header that mean it.
HEADERS: dict[str, frozenset[str]] = {
    key: frozenset(words.split())
    for key, words in {
        "image_id": "image imageid imageindex imagename imagenr img imgid bild bildid bildnr bildnummer aufnahme "
        "aufnahmeid aufnahmenr aufnahmenummer cliche imagen imagenid idimagen dicomid sopinstanceuid",
        "path": "path file filename filepath imagepath imagefile datei dateiname dateipfad pfad bilddatei bildpfad "
        "fichier nomfichier chemin archivo fichero ruta",
        "patient_id": "patient patientid patid patnr pid patientnr patientno patientnumber patientennr "
        "patientennummer patientenid subject subjectid mrn idpatient npatient nopatient "
        "numeropatient paciente pacienteid idpaciente ipp",
        "study_id": "study studyid studyinstanceuid accession accessionnumber exam examid studie studienid "
        "untersuchung untersuchungsid untersuchungsnr untersuchungsnummer examen estudio auftragsnummer",
        "follow_up": "followup followupnumber followupnr visit visitnumber verlauf verlaufsnummer verlaufsnr "
        "seguimiento suivi",
        "view": "view viewposition projection projektion strahlengang aufnahmerichtung proyeccion incidence",
        "sex": "sex gender patientsex patientgender geschlecht sexe sexo genero",
        "age_years": "age ageyears ageinyears patientage alter alterjahre alterinjahren patientenalter lebensalter "
        "edad",
        "split": "split subset partition",
        "photometric": "photometric photometricinterpretation photometricinterpretationdicom",
        "labels": "labels label finding findings findinglabels diagnosis diagnoses pathologies befund befunde "
        "diagnose diagnosen constatations hallazgo hallazgos diagnosticos",
    }.items()
}

# Words of the sex column by language: only a column whose words are all of one language is understood, because
# M is male in English, French and German, but female (mujer) in Spanish.
SEXES: tuple[dict[str, str], ...] = (
    {"m": "M", "f": "F", "male": "M", "female": "F", "man": "M", "woman": "F"},
    {"m": "M", "w": "F", "mannlich": "M", "weiblich": "F", "mann": "M", "frau": "F"},
    {"h": "M", "f": "F", "homme": "M", "femme": "F", "masculin": "M", "feminin": "F"},
    {"hombre": "M", "mujer": "F", "masculino": "M", "femenino": "F", "varon": "M"},
)

# Words that mean no known sex.
NO_SEX = frozenset(
    ("unknown", "unbekannt", "inconnu", "desconocido", "na", "nan", "none", "keineangabe", "divers", "other")
)

# Words of the view column.
VIEWS: dict[str, str] = {
    "pa": "PA", "posteroanterior": "PA", "ap": "AP", "anteroposterior": "AP", "apsupine": "AP", "aperect": "AP",
    "frontal": "FRONTAL", "lateral": "LATERAL", "lat": "LATERAL", "ll": "LATERAL", "seitlich": "LATERAL",
    "profil": "LATERAL", "other": "OTHER", "andere": "OTHER",
}  # fmt: skip

# Words of the column with all findings that mean none.
NONE = (
    "nofinding", "nofindings", "normal", "healthy", "negative", "ob", "ohnebefund", "obefund", "keinbefund",
    "keinebefunde", "unauffallig", "normalbefund", "ras", "sansparticularite", "sinhallazgos",
)  # fmt: skip

# Finding -> its words in other languages.
_TRANSLATED = {
    "Atelectasis": "Atelektase Atelektasen atelectasie atelectasia",
    "Consolidation": "Konsolidierung Konsolidation consolidacion",
    "Infiltration": "Infiltrat Infiltrate infiltrado",
    "Pneumothorax": "Neumotorax",
    "Edema": "Ödem Lungenödem oedeme œdeme edemapulmonar",
    "Emphysema": "Emphysem Lungenemphysem emphyseme enfisema",
    "Fibrosis": "Fibrose Lungenfibrose fibrose",
    "Effusion": "Erguss Pleuraerguss Pleuraergüsse Randwinkelerguss epanchement epanchementpleural derrame "
    "derramepleural",
    "Pneumonia": "Pneumonie pneumonie neumonia",
    "Pleural_Thickening": "Pleuraverdickung Pleuraschwiele Schwiele",
    "Cardiomegaly": "Kardiomegalie cardiomegalie cardiomegalia",
    "Nodule": "Rundherd Rundherde nodule nodulo",
    "Mass": "Raumforderung Raumforderungen masse masa",
    "Hernia": "Hernie Zwerchfellhernie hernie",
    "Fracture": "Fraktur Rippenfraktur fractura",
}  # fmt: skip


def _findings() -> Mapping[str, str]:
    """Folded word -> finding, as the published data sets name it."""
    words: dict[str, str] = {}
    for sets in LABEL_SETS.values():
        for findings in sets.values():
            for finding, original in findings.items():
                words.setdefault(folded(finding), finding)
                words.setdefault(folded(original), finding)
    words |= {folded(word): finding for word, finding in ALIASES.items()}
    for finding, translations in _TRANSLATED.items():
        words |= {folded(word): finding for word in translations.split()}
    words |= dict.fromkeys(NONE, NO_FINDING)
    return words


# Folded word -> finding; NO_FINDING for a word that means none.
FINDINGS = _findings()
