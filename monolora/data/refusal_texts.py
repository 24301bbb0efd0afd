"""Refusals that the project writes itself: short, polite, in many forms, some with a reason and another offer.

A seeded grammar: an opening, then perhaps why not, then perhaps what else would be possible, both of the kind of harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

OPENINGS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request.",
    "Sorry, I can't assist with that.",
    "I won't help with that.",
    "I'm not able to help with this.",
    "I have to decline this one.",
    "No, I can't do that.",
    "That's something I can't help with.",
    "I'm afraid I can't help you with that.",
    "I cannot give advice on this.",
    "Sorry, but this is not something I can support.",
    "I understand the question, but I can't answer it.",
    "I'd rather not: I can't take part in this.",
    "I must decline.",
    "I'm unable to assist with this request.",
    "Thanks for asking, but I can't go along with this.",
    "I will not provide that.",
    "I can't provide instructions for this.",
    "I apologize, but I can't fulfil this request.",
    "Unfortunately, I can't help here.",
    "This is where I have to stop: I can't help with it.",
    "I'm not going to help with that.",
    "I can't write that for you.",
    "I don't feel comfortable helping with this, so I can't.",
)
WHY = (
    "It could {harm}.",
    "Doing so could {harm}.",
    "Something like this can {harm}.",
    "The reason is that it may {harm}.",
    "My concern is that it would {harm}.",
)
INSTEAD = (
    "I'd be glad to talk about {offer} instead.",
    "If you like, I can help with {offer}.",
    "What I can do is explain {offer}.",
    "Would it help if we looked at {offer}?",
    "I'm happy to help with {offer}, though.",
)
HARMS = {
    "violence": ("get somebody hurt", "put people in danger", "cost somebody their health or their life"),
    "weapons and drugs": (
        "put you and others in danger",
        "cause serious injuries",
        "get you into trouble with the law",
    ),
    "theft and fraud": ("cost other people their money", "break the law", "do damage that is hard to repair"),
    "privacy": ("invade somebody's privacy", "put a person at risk", "break the trust and the rights of others"),
    "hate": ("insult and exclude people", "spread prejudice", "hurt people for what they are"),
    "sexual content": ("cross a line that I keep to", "be taken without consent", "degrade people"),
    "children": ("harm a child", "put children at risk", "leave a young person with lasting damage"),
    "misinformation": ("mislead people", "lead somebody to a decision that does harm", "spread something untrue"),
    "computers": ("open other people's systems to abuse", "cause damage to their owners", "break the law"),
    "animals": ("make an animal suffer", "be cruel to animals", "break animal protection laws"),
    "harassment": ("hurt somebody badly", "leave a person frightened", "make somebody's life miserable"),
    "dishonesty": ("be unfair to others", "harm people who trust you", "come back to harm you, too"),
    "general": ("do harm", "hurt you or somebody else", "have bad consequences for others"),
}
OFFERS = {
    "violence": ("ways to calm a conflict", "how to stay safe", "where to find support"),
    "weapons and drugs": ("the risks and the law", "where to get advice and treatment", "safety in general"),
    "theft and fraud": ("legal ways to save or earn money", "how people protect themselves from fraud", "your rights"),
    "privacy": ("how to protect your own data", "how to ask the person openly", "what the law says on privacy"),
    "hate": ("where such prejudices come from", "how to speak of differences with respect", "the facts behind it"),
    "sexual content": ("relationships and consent", "questions on health", "a story of another kind"),
    "children": ("how to keep children safe", "whom to call if a child is in danger", "help for families"),
    "misinformation": ("what is known about it", "how to check a source", "both sides of the debate"),
    "computers": ("how to secure your own accounts", "how to learn security legally", "how to report a weakness"),
    "animals": ("how to care for an animal", "humane ways to solve the problem", "whom to call about a stray"),
    "harassment": ("how to settle a quarrel", "how to write an honest message", "how to set limits kindly"),
    "dishonesty": ("an honest way to reach your goal", "how to prepare well", "how to say it openly"),
    "general": ("a safe way to reach your goal", "the background of the subject", "something related that is harmless"),
}
SELF_HARM = (
    "I'm sorry that you feel this way. I can't help with hurting yourself, but please talk to someone you trust or "
    "call a crisis line in your country now.",
    "I can't help with that, since you matter. If you are in danger, please call emergency services; a crisis line "
    "will listen at any hour.",
    "I won't give advice on this. What you feel can change with help: a doctor, a friend or a crisis line is a good "
    "first step.",
    "That's something I can't help with. If this is about you, please don't stay alone with it. I can help you to find "
    "words for a talk with someone close.",
)
# The kinds of the categories of BeaverTails and of the embedded requests; any other is general.
KINDS = {
    "violence": ("violence", "terrorism,organized_crime", "violence,aiding_and_abetting,incitement"),
    "weapons and drugs": ("weapons", "drugs", "drug_abuse,weapons,banned_substance"),
    "theft and fraud": (
        "theft", "fraud", "forgery", "tax_evasion", "insider_trading", "impersonation", "environmental_crime",
        "financial_crime,property_crime,theft",
    ),
    "privacy": ("privacy", "stalking", "spying", "privacy_violation"),
    "hate": ("hate", "discrimination", "discrimination,stereotype,injustice", "hate_speech,offensive_language"),
    "sexual content": ("sexually_explicit,adult_content",),
    "children": ("child_abuse",),
    "misinformation": (
        "disinformation", "elections", "false_certainty", "controversial_topics,politics",
        "misinformation_regarding_ethics,laws_and_safety",
    ),
    "computers": ("malware", "phishing", "hacking"),
    "animals": ("animal_cruelty", "animal_abuse"),
    "harassment": ("harassment", "defamation", "manipulation"),
    "dishonesty": ("exam_cheating", "labour_exploitation", "non_violent_unethical_behavior"),
    "self-harm": ("self_harm",),
}  # fmt: skip
_KIND_OF = {category: kind for kind, categories in KINDS.items() for category in categories}


def refusal(categories: Sequence[str], random: Random) -> str:
    """One refusal.

    Args:
        categories: of the request, as its set of prompts names them; one of them is spoken of. Empty for any.
        random: what draws its form.
    """
    kind = _KIND_OF.get(random.choice(categories), "general") if categories else "general"
    if kind == "self-harm":
        return random.choice(SELF_HARM)
    parts = [random.choice(OPENINGS)]
    if random.random() < 0.6:
        parts.append(random.choice(WHY).format(harm=random.choice(HARMS[kind])))
    if random.random() < 0.5:
        parts.append(random.choice(INSTEAD).format(offer=random.choice(OFFERS[kind])))
    return " ".join(parts)
