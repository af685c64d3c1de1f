"""Plan search on a tiny run: what it looks at, what it tries, and what it says."""

import numpy as np
import pytest

from rumfast import run
from rumfast.config import Recipe
from rumfast.errors import DataError, UsageError
from rumfast.pipeline import Run
from rumfast.pipeline.search import search
from rumfast.pipeline.trials import Trials
from rumfast.pipeline.variation import Candidate, Variation, standard_families
from rumfast.plans import parse_plan
from rumfast.store import read_json
from rumfast.sweeps import LocalEngine, Population

pytestmark = pytest.mark.slow

SMALL = {
    "surrogates": 2,
    "finals": 1,
    "checks": 1,
    "originals": 2,
    "oracles": 2,
    "generations": 2,
    "children": 4,
}
FAMILIES = {
    "none": [Candidate(steps="none")],
    "finetune": [Candidate(steps=f"finetune(lr={lr})") for lr in (0.01, 0.03, 0.1, 0.3, 1e12)],
    "salun+rum-f": [Candidate(steps=f"each: salun(lr={lr})") for lr in (0.01, 0.1)],
}


def make_recipe(path, **sections):
    return Recipe.model_validate(
        {
            "data": {"path": str(path), "train_examples": 200, "test_examples": 100},
            "train": {"arch": "resnet8", "width": 4, "epochs": 2, "batch_size": 64, "precision": "fp32"},
            "forget": {"request": "random:30", "refine": "distance", "groups": 2},
            "unlearn": {"budget_epochs": 1.5},
            "plans": [{"name": "none", "steps": "none"}],
            "evaluate": {"seeds": 2, "oracles": 3, "mia_examples": 60},
            "search": SMALL,
        }
        | sections
    )


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2, "cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def refined(packed, engine, tmp_path_factory):
    """Makes runs that are ready to be searched; all share one set of originals."""
    base = tmp_path_factory.mktemp("search")
    Run(make_recipe(packed), base / "base", engine, "cpu").train()

    def make(name, **sections):
        made = Run(make_recipe(packed, **sections), base / name, engine, "cpu", base=base / "base")
        made.pack()
        made.refine()
        return made

    return make


@pytest.fixture(scope="module")
def found(refined):
    made = refined("found")
    return made, search(made, FAMILIES)


def trials_of(made, result):
    folder = made.dir.search / result["key"][:12]
    return {path.parent.name: Population.open(path.parent) for path in folder.glob("*/spec.json")}


def done(population):
    spec = population.spec
    cells = [divmod(i, spec.pairs) for i in population.done(range(len(spec.candidates) * spec.pairs))]
    return {number: [pair for at, pair in cells if at == number] for number in {at for at, _ in cells}}


def without_time(result):
    return {key: value for key, value in result.items() if key != "wall_s"}


def test_the_forget_set_is_in_no_surrogate_and_its_oracles_are_not_needed(found):
    made, result = found
    forget = set(made.split.forget.tolist())
    populations = trials_of(made, result)
    oracles = {f"oracles-{number}" for number in range(4)}
    assert set(populations) == {"families", "mixed-0", "mixed-1"} | oracles
    seen = [
        set(population.spec.forget)
        | {
            i
            for one in population.spec.surrogates
            for kind in one.groups.values()
            for g in kind
            for i in g.ids
        }
        for population in populations.values()
    ]
    assert all(ids and not ids & forget for ids in seen)
    assert not made.dir.oracles.exists()


def test_a_third_goes_on_to_more_pairs_and_the_best_to_those_set_aside(found):
    made, result = found
    tried = done(trials_of(made, result)["families"])
    # Surrogates 0 and 1 to choose on, 2 for the finals, 3 to check, and two originals.
    lengths = [len([pair for pair in tried[number] if pair % 4 < 2]) for number in range(8)]
    assert lengths[0] == 4  # alone in its family
    assert sorted(lengths[1:6]) == [2, 2, 2, 4, 4]
    assert sorted(lengths[6:]) == [2, 4]
    steps = [one.steps for each in FAMILIES.values() for one in each]
    finalists = {each["steps"] for each in result["finalists"].values()}
    for number, pairs in tried.items():
        further = {pair for pair in pairs if pair % 4 >= 2}
        assert further == ({2, 3, 6, 7} if steps[number] in finalists else set())


def test_the_best_is_the_best_of_the_finalists_where_it_was_chosen(found):
    _, result = found
    finalists, families = result["finalists"], result["families"]
    scores = {name: each["chosen_on"]["objective"]["mean"] for name, each in finalists.items()}
    assert scores[result["best"]] == max(scores.values())
    assert set(FAMILIES) | {"mixed"} <= set(scores)
    assert {name: each["tried"] for name, each in families.items()} == {
        "none": 1,
        "finetune": 5,
        "salun+rum-f": 2,
        "mixed": 8,
    }
    assert "1e+12" not in families["finetune"]["steps"]  # it diverges, which counts as 0
    for each in finalists.values():
        for where, pairs in (("chosen_on", 6), ("expected", 2)):
            tow, mia, both = (each[where][key]["values"] for key in ("tow", "tow_mia", "objective"))
            assert len(tow) == pairs and np.allclose(both, (np.array(tow) + mia) / 2)
            assert all(0 <= value <= 1 for value in (*tow, *mia))


def test_none_is_worth_the_same_as_its_own_trials_say(found):
    made, result = found
    trials = Trials(made, FAMILIES)
    table = trials.table("families", [one for each in FAMILIES.values() for one in each])
    table.run([0], [0])
    spec, surrogate = trials_of(made, result)["families"].spec, trials.surrogates[0]
    stored = trials_of(made, result)["families"].trial(0)
    outputs = made.originals.outputs(0)
    correct_N = outputs["train"].argmax(1) == made.data.train.label_N
    assert stored["scores"]["accuracy_forget"] == correct_N[surrogate.forget].mean()
    assert stored["scores"]["accuracy_retain"] == correct_N[surrogate.retain].mean()
    assert stored["examples"] == 0 and spec.candidates[0].steps == "none"


def test_interrupted_it_ends_the_same(found, refined):
    _, expected = found
    again = refined("again")
    first = search(again, FAMILIES)
    assert without_time(first) == without_time(expected)
    (again.dir.search / "result.json").unlink()
    for name, population in trials_of(again, first).items():
        if not name.startswith("oracles"):
            indices = [i for i in range(200) if population.has(i)]
            for index in indices[::2]:
                population.member(index).unlink()
    assert without_time(search(again, FAMILIES)) == without_time(expected)


def test_out_of_time_it_chooses_by_what_it_knows(refined):
    made = refined("late", search=SMALL | {"minutes": 1e-6})
    result = search(made, FAMILIES)
    tried = done(trials_of(made, result)["families"])
    assert all(len([pair for pair in pairs if pair % 4 < 2]) == 2 for pairs in tried.values())
    assert result["families"]["mixed"]["tried"] == 4  # one generation, so that there is something to choose
    assert len(result["finalists"][result["best"]]["expected"]["tow"]["values"]) == 2
    assert search(made, FAMILIES) == result


def test_a_class_is_tried_on_other_classes(refined):
    made = refined("class", forget={"request": "class:3", "refine": "none"})
    trials = Trials(made, FAMILIES)
    for surrogate in trials.surrogates:
        labels = made.data.train.label_N[surrogate.forget]
        assert len(set(labels)) == 1 and labels[0] != 3
        assert len(surrogate.forget) == (made.data.train.label_N == labels[0]).sum()


def test_what_the_budget_cannot_pay_is_left_out(refined):
    # 20 examples; SalUn looks at 30 first.
    made = refined("poor", unlearn={"budget_epochs": 0.1}, search=SMALL | {"generations": 0})
    families = {"salun": [Candidate(steps="salun")], "finetune": [Candidate(steps="finetune")]}
    result = search(made, families)
    assert set(result["families"]) == {"finetune"}
    with pytest.raises(UsageError, match="no candidate fits"):
        search(made, {"salun": families["salun"]})


def test_more_than_half_cannot_be_imitated(refined):
    made = refined("half", forget={"request": "random:101", "refine": "distance", "groups": 2})
    with pytest.raises(DataError, match="101 examples to forget and 99 others"):
        search(made, FAMILIES)


def test_an_automatic_plan_is_searched_run_and_reported(packed, tmp_path):
    plans = [{"name": "none", "steps": "none"}, {"name": "mine", "steps": "auto"}]
    algorithms = ["none", "finetune", "neggrad_plus"]
    few = {"children": 2, "generations": 1, "algorithms": algorithms}
    sections = {"search": SMALL | few, "plans": plans}
    recipe = make_recipe(packed, **sections)
    results = run(recipe, tmp_path / "run", device="cpu", workers=2)
    summary = results["evaluate"]
    chosen = read_json(tmp_path / "run" / "search" / "result.json")
    assert set(chosen["families"]) - {"mixed"} == {*algorithms, "finetune+rum-f", "neggrad_plus+rum-f"}
    best = chosen["finalists"][chosen["best"]]
    spec = Population.open(tmp_path / "run" / "unlearned" / "mine").spec
    assert spec.plan == best["steps"] and spec.retain == (best["retain"] or "remaining")
    mine = next(plan for plan in summary["plans"] if plan["name"] == "mine")
    assert [text.split("(")[0] for text in mine["steps"].split(" > ")] and mine["refine"] == best["refine"]


def variation(**options):
    seeds = [
        (Candidate(steps="each: salun(lr=0.1)"), 0.9),
        (Candidate(steps="finetune(lr=0.3)"), 0.8),
        (Candidate(steps="low: none > high: neggrad_plus(alpha=0.8)"), 0.7),
        (Candidate(steps="each: random_label", refine="random"), 0.6),
    ]
    return Variation(("low", "high"), options.get("seeds", seeds), seed=options.get("seed", 0))


def test_the_first_generation_comes_from_the_families_and_each_child_is_new():
    children = variation().children([], 40, generation=0)
    assert len({child.model_dump_json() for child in children}) == len(children) == 40
    for child in children:
        steps = parse_plan(child.steps)
        assert {step.group for step in steps} == {"low", "high"} and child.refine is None
    used = {step.algorithm for child in children for step in parse_plan(child.steps)}
    assert used == {"none", "salun", "finetune", "neggrad_plus", "random_label"}


def test_variations_stay_close_to_their_parents():
    parent = Candidate(steps="low: finetune(lr=0.1) > high: salun(lr=0.1)")
    chosen = variation()
    children = chosen.children([parent], 30, generation=1)
    assert all(child != parent for child in children)
    same = [{s.algorithm for s in parse_plan(c.steps)} & {"finetune", "salun"} for c in children]
    assert all(same)
    assert chosen.children([parent], 5, generation=1) and not set(children) & set(
        chosen.children([parent], 5, generation=1)
    )
    assert variation().children([parent], 30, generation=1) == children
    assert variation(seed=1).children([parent], 30, generation=1) != children


def test_families_are_of_known_algorithms():
    families = standard_families(["low", "mid", "high"])
    assert {"none", "scrub", "scrub+rum-f", "rum"} <= set(families) and "none+rum-f" not in families
    assert set(standard_families(["all"], ["none", "salun"])) == {"none", "salun"}
    assert all(parse_plan(one.steps) for each in families.values() for one in each)
    for name in ("retrain", "unheard"):
        with pytest.raises(UsageError, match=name):
            standard_families(["all"], [name])
