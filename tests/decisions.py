"""Entries of a journal with invented figures: single ones, and twelve weeks of all kinds."""

from datetime import UTC, datetime, timedelta

from pipeline.promotion.gate import Check, Judgement
from pipeline.promotion.journal import stamp

START = datetime(2026, 9, 7, 3, tzinfo=UTC)
SHA256 = {name: letter * 64 for name, letter in {"first": "a", "second": "b", "third": "c"}.items()}
BETTER = "the challenger must be better by more than the bound"
TEXT = {
    "top1_accuracy": BETTER,
    "balanced_accuracy": BETTER,
    "recall": "no class may fall by more than the bound",
    "log_loss": "it may be higher by the bound",
    "latency": "milliseconds per picture; at most so many times the champion's",
    "size": "megabytes of model.onnx; at most so many times the champion's",
}


def figure(value, half=0.03):
    """A share with an interval."""
    return {"value": value, "low": round(value - half, 6), "high": round(min(1.0, value + half), 6)}


def check(name="top1_accuracy", challenger=0.95, champion=0.93, half=0.025, bound=0.0, passed=True, text=None):
    """One line of the gate's table."""
    difference = None if champion is None else round(challenger - champion, 6)
    low, high = (None, None) if half is None or difference is None else (round(difference - half, 6), round(difference + half, 6))
    return Check(name, challenger, champion, difference, low, high, bound, passed, TEXT[name] if text is None else text)


def row(name="ants", challenger=0.95, champion=0.9, pictures=60, p=0.4, passed=True):
    """A class."""
    return {"class": name, "pictures": pictures, "challenger": challenger, "champion": champion, "p": p, "passed": passed}


def judgement(verdict="PROMOTE", challenger=0.95, champion=0.93, look=1, **changes):
    """A judgement as the journal keeps it."""
    checks = [
        check(challenger=challenger, champion=champion, passed=verdict == "PROMOTE"),
        check("recall", 0.9, None if champion is None else 0.92, None, 0.05, verdict != "REJECT"),
        check("log_loss", 0.21, None if champion is None else 0.24, None, 0.1),
        check("latency", 12.3, None if champion is None else 11.9, None, 2.0),
        check("size", 14.25, None if champion is None else 14.25, None, 2.0, None),
    ]
    given = {
        "verdict": verdict,
        "reason": "a reason",
        "values": {"challenger": figure(challenger), "champion": None if champion is None else figure(champion)},
        "checks": checks,
        "classes": [row("ants", 0.97, 0.93), row("bees", 0.9, 0.92, 80), row("wasps", 0.8, 1.0, 5, None, None)],
        "notes": [],
        "test": {"sha256": "e" * 64, "pictures": 153, "groups": 140},
        "old": None,
        "counts": champion is not None,
        "look": look,
        "looks": 26,
        "alpha": 0.001923,
    }
    return Judgement(**{**given, **changes}).as_dict()


def entry(verdict="PROMOTE", week=0, sha256=SHA256["first"], champion=None, reason="it is better", **changes):
    """An entry as a mapping."""
    given = {
        "time": stamp(START + timedelta(weeks=week)),
        "verdict": verdict,
        "reason": reason,
        "model": "finetuned",
        "sha256": sha256,
        "champion": champion,
        "key": f"{verdict}-{week}",
        "judgement": None,
        "commit": None,
        "lock_sha256": None,
    }
    return {**given, **changes}


def twelve_weeks():
    """A first champion, challengers of each fate, a rollback, an approval."""
    first, second, third = SHA256.values()

    def judged(week, verdict, sha256, champion, values, reason, **changes):
        facts = judgement(verdict, *values, look=max(1, week), reason=reason, **changes)
        return entry(verdict, week, sha256, champion, reason, judgement=facts)

    fall = [row("ants", 0.97, 0.93), row("bees", 0.78, 0.92, 80, 0.004, False), row("wasps", 0.8, 1.0, 5, None, None)]
    notes = ["wasps: 5 test pictures are too few to judge the class.", "12 test pictures are new since the champion was promoted."]
    old = {"pictures": 141, "groups": 130, "challenger": 0.957, "champion": 0.936, "difference": 0.021, "low": -0.008, "high": 0.05}
    hold = "The gain of 0.7 points is not shown (−2.4 to 3.8); 153 test pictures see a gain of 6 points in 80 of 100 cases."
    better = "It is better by 3.4 points (0.9 to 5.9) at look 3 of 26, and no check failed."
    worse = "The recall of bees falls from 0.92 to 0.78 (p = 0.004), by more than 0.05."
    return [
        judged(0, "PROMOTE", first, None, (0.902, None), "The first champion: 0.872 at least, and the most frequent class has 0.524."),
        judged(1, "HOLD", second, first, (0.909, 0.902), hold),
        judged(2, "HOLD", second, first, (0.915, 0.902), hold),
        judged(3, "PROMOTE", second, first, (0.936, 0.902), better),
        judged(5, "REJECT", third, second, (0.948, 0.936), worse, classes=fall),
        judged(6, "HOLD", third, second, (0.941, 0.936), hold),
        judged(7, "PENDING", third, second, (0.955, 0.936), "It is better by 1.9 points, and a person must approve."),
        entry("APPROVE", 7.2, third, second, "Reviewed with the team."),
        entry("ROLLBACK", 8, second, third, "Complaints about blurred pictures."),
        judged(10, "HOLD", first, second, (0.93, 0.931), hold),
        judged(11, "HOLD", third, second, (0.945, 0.931), hold, notes=notes, old=old),
    ]
