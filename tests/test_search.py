"""Plan search on a tiny run: what it looks at, what it tries, and what it says."""

import numpy as np
import pytest

from rumfast import run
from rumfast.config import PlanConfig, Recipe
from rumfast.data import ids_digest
from rumfast.errors import DataError, UsageError
from rumfast.pipeline import Run
from rumfast.pipeline.search import search_plans
from rumfast.pipeline.trials import Trials
from rumfast.pipeline.variation import Candidate, Variation, standard_families
from rumfast.plans import parse_plan
from rumfast.store import read_json, write_json
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
    return made, search_plans(made, FAMILIES)


def trials_of(made):
    """Populations of a run's searches by name, without the digests of what they are about."""
    folders = [path.parent for path in made.dir.search.glob("*/spec.json")]
    return {folder.name.rpartition("-")[0]: Population.open(folder) for folder in folders}


def done(population):
    spec = population.spec
    cells = [divmod(i, spec.pairs) for i in population.done(range(len(spec.candidates) * spec.pairs))]
    return {number: [pair for at, pair in cells if at == number] for number in {at for at, _ in cells}}


def without_time(result):
    return {key: value for key, value in result.items() if key != "wall_s"}


def test_the_forget_set_is_in_no_surrogate_and_its_oracles_are_not_needed(found):
    made, result = found
    forget = set(made.split.forget.tolist())
    assert result["forget"] == ids_digest(made.split.forget)
    populations = trials_of(made)
    oracles = {f"oracles-{number}" for number in range(4)}
    assert set(populations) == {"families", "mixed-0", "mixed-1"} | oracles
    seen = [set(each.spec.forget) for each in populations.values() if each.spec.kind == "oracle"]
    for population in populations.values():
        for surrogate in population.spec.surrogates:
            seen += [set(group.ids) for kind in surrogate.groups.values() for group in kind]
    assert all(ids and not ids & forget for ids in seen)
    assert not made.dir.oracles.exists()


def test_a_third_goes_on_to_more_pairs_and_the_best_to_those_set_aside(found):
    made, result = found
    tried = done(trials_of(made)["families"])
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


def test_the_best_is_the_worthiest_of_the_finalists(found):
    _, result = found
    finalists, families = result["finalists"], result["families"]
    scores = {name: each["worth"] for name, each in finalists.items()}
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
        for where, surrogates in (("chosen_on", 3), ("expected", 1)):
            tow, mia, both = (each[where][key]["values"] for key in ("tow", "tow_mia", "objective"))
            assert len(tow) == surrogates and np.allclose(both, (np.array(tow) + mia) / 2)
            assert all(0 <= value <= 1 for value in (*tow, *mia))


@pytest.mark.parametrize("caution", [0.0, 2.0])
def test_worth_takes_standard_deviations_off_the_mean_of_all_pairs_that_choices_depend_on(
    found, refined, caution
):
    _, expected = found
    made = refined("cautious", search=SMALL | {"caution": caution})
    result = search_plans(made, FAMILIES)
    assert result["families"]["none"]["chosen_on"] == expected["families"]["none"]["chosen_on"]
    table = Trials(made, FAMILIES).table("families", [one for each in FAMILIES.values() for one in each])
    pairs = [0, 1, 4, 5, 2, 6] if "none" in result["finalists"] else [0, 1, 4, 5]
    table.run([0], pairs)
    values = table.values(0, pairs, ("tow", "tow_mia"))
    assert result["families"]["none"]["worth"] == pytest.approx(np.mean(values) - caution * np.std(values))
    assert np.std(values) > 0


def test_none_is_worth_the_same_as_its_own_trials_say(found):
    made, result = found
    trials = Trials(made, FAMILIES)
    table = trials.table("families", [one for each in FAMILIES.values() for one in each])
    table.run([0], [0])
    spec, surrogate = trials_of(made)["families"].spec, trials.surrogates[0]
    stored = trials_of(made)["families"].trial(0)
    outputs = made.originals.outputs(0)
    correct_N = outputs["train"].argmax(1) == made.data.train.label_N
    assert stored["scores"]["accuracy_forget"] == correct_N[surrogate.forget].mean()
    others = np.setdiff1d(surrogate.retain, made.split.forget)  # which says nothing of retaining
    assert stored["scores"]["accuracy_retain"] == correct_N[others].mean()
    assert stored["examples"] == 0 and spec.candidates[0].steps == "none"


def test_interrupted_it_ends_the_same(found, refined):
    _, expected = found
    again = refined("again")
    first = search_plans(again, FAMILIES)
    assert without_time(first) == without_time(expected)
    (again.dir.search / "result.json").unlink()
    for name, population in trials_of(again).items():
        if not name.startswith("oracles"):
            indices = [i for i in range(200) if population.has(i)]
            for index in indices[::2]:
                population.member(index).unlink()
    assert without_time(search_plans(again, FAMILIES)) == without_time(expected)


def test_out_of_time_it_chooses_by_what_it_knows(refined):
    made = refined("late", search=SMALL | {"minutes": 1e-6})
    result = search_plans(made, FAMILIES)
    tried = done(trials_of(made)["families"])
    first = [0, 1, 6]  # of each family
    assert sorted(tried) == first and [family["tried"] for family in result["families"].values()] == [1] * 3
    assert all(len([pair for pair in pairs if pair % 4 < 2]) == 2 for pairs in tried.values())
    assert "mixed" not in result["families"] and list(result["finalists"]) == [result["best"]]
    assert len(result["finalists"][result["best"]]["expected"]["tow"]["values"]) == 1
    assert not any(pair % 4 == 2 for pairs in tried.values() for pair in pairs)  # nothing to decide between
    assert search_plans(made, FAMILIES) == result


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
    result = search_plans(made, families)
    assert set(result["families"]) == {"finetune"}
    with pytest.raises(UsageError, match="no candidate fits"):
        search_plans(made, {"salun": families["salun"]})


def test_surrogates_differ_and_say_how_much_they_share(found):
    made, result = found
    sets = [set(surrogate.forget.tolist()) for surrogate in Trials(made, FAMILIES).surrogates]
    assert len({tuple(sorted(ids)) for ids in sets}) == len(sets) == 4
    assert result["overlap"] == len(sets[3] & (sets[0] | sets[1] | sets[2])) / len(sets[3])


def test_what_did_well_on_a_few_pairs_is_no_match_for_more(found):
    made, _ = found
    table = Trials(made, FAMILIES).table("families", [one for each in FAMILIES.values() for one in each])
    table.run([0], range(1))
    table.run([1], [0, 1, 4, 5])
    assert table.rank(0)[0] == 1 and table.rank(1)[0] == 4 and table.rank(1) > table.rank(0)


def test_controls_are_no_finalists(refined):
    made = refined("controls", search=SMALL | {"generations": 0})
    families = {"shuffled": [Candidate(steps="each: finetune", refine="random")], "none": FAMILIES["none"]}
    result = search_plans(made, families)
    assert set(result["families"]) == {"shuffled", "none"} and set(result["finalists"]) == {"none"}


def test_what_blows_up_loses_and_ends_nothing(refined):
    made = refined("huge", search=SMALL | {"generations": 0}, unlearn={"budget_epochs": 2.5})
    wild = {"none": FAMILIES["none"], "at once": [Candidate(steps="influence(alpha=1e12)")]}
    wild["by group"] = [Candidate(steps="each: influence(alpha=1e12)")]
    assert set(search_plans(made, wild)["families"]) == {"none"}
    with pytest.raises(UsageError, match="every candidate diverged"):
        search_plans(made, {"at once": wild["at once"]})


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"forget": {"request": "random:101", "refine": "distance"}}, DataError, "101 examples to forget"),
        ({"unlearn": {}}, UsageError, "budget_epochs"),
        ({"forget": {"request": "random:30", "refine": "class"}}, UsageError, "no surrogates"),
        ({"search": {"algorithms": ["nothing"]}}, UsageError, "'nothing'"),
        (
            {"forget": {"request": "class:3", "refine": "none"}, "search": {"checks": 9}},
            UsageError,
            "14 are wanted, and there are 9",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_training(packed, tmp_path, sections, error, message):
    recipe = make_recipe(packed, **({"plans": [{"name": "auto", "steps": "auto"}]} | sections))
    with pytest.raises(error, match=message):
        run(recipe, tmp_path / "run", device="cpu", workers=1)
    assert not (tmp_path / "run" / "original").exists()


def test_more_time_keeps_what_was_tried_and_a_used_plan_stays(refined):
    made = refined("first", search=SMALL | {"minutes": 1e-6})
    short = search_plans(made, FAMILIES)
    before = {path: path.stat().st_mtime_ns for path in made.dir.search.rglob("members/*.json")}
    plan = PlanConfig(name="auto", steps="auto")
    chosen = made.chosen(plan)
    longer = refined("first", search=SMALL)
    full = search_plans(longer, FAMILIES)
    assert full["key"] != short["key"] and longer.searched()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert longer.chosen(plan) == chosen and chosen.steps != "auto"
    best = full["finalists"][full["best"]]
    assert longer.earlier_choices() == ([] if best["steps"] == chosen.steps else ["auto"])
    old = {"steps": "all: retrain", "refine": None, "retain": None}
    write_json(made.dir.plan("old") / "chosen.json", old)
    assert longer.chosen(PlanConfig(name="old", steps="auto")).steps == "all: retrain"
    assert "old" in longer.earlier_choices()
    again = made.chosen(PlanConfig(name="again", steps="auto"))
    assert again.steps == full["finalists"][full["best"]]["steps"]


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
    assert mine["refine"] == best["refine"]
    algorithms = {step.algorithm for step in parse_plan(best["steps"])}
    assert {step.split(": ")[1].split("(")[0] for step in mine["steps"].split(" > ")} == algorithms


def variation(**options):
    seeds = [
        (Candidate(steps="each: salun(lr=0.1)"), 0.9),
        (Candidate(steps="finetune(lr=0.3)"), 0.8),
        (Candidate(steps="low: none > high: neggrad_plus(alpha=0.8)"), 0.7),
        (Candidate(steps="each: random_label", refine="random"), 0.6),
    ]
    return Variation(("low", "high"), seeds, options.get("retain", "remaining"), options.get("seed", 0))


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


def test_a_share_of_the_budget_keeps_an_algorithms_phases():
    parent = Candidate(steps="low: scrub(epochs=5, msteps=1) > high: none")
    children = variation().children([parent], 60, generation=1)
    steps = [step for child in children for step in parse_plan(child.steps) if step.algorithm == "scrub"]
    assert {round(step.config.msteps / step.config.epochs, 9) for step in steps} == {0.2}
    assert len({step.config.epochs for step in steps}) > 1


def test_retain_flips_from_what_the_recipe_says():
    parent = Candidate(steps="low: none > high: salun")
    for recipe, other in (("final", "remaining"), ("remaining", "final")):
        found = {child.retain for child in variation(retain=recipe).children([parent], 40, generation=1)}
        assert found == {None, other}


def test_what_starts_anew_is_no_step_of_a_mixed_plan():
    seeds = [(Candidate(steps="euk"), 0.9), (Candidate(steps="finetune"), 0.1)]
    children = Variation(("low", "high"), seeds, "remaining", 0).children([], 6, generation=0)
    assert children and not any("euk" in child.steps for child in children)
    assert "euk+rum-f" not in standard_families(["low", "high"])


@pytest.mark.parametrize("originals, times, distinct", [(10, 3, 10), (2, 2, 2), (5, 1, 4), (3, 3, 3)])
def test_pairs_see_as_many_originals_as_there_are(found, originals, times, distinct):
    made, _ = found
    spec = trials_of(made)["families"].spec.model_copy(update={"pairs": 4 * times, "originals": originals})
    pairs = [spec.pair(number) for number in range(4 * times)]
    assert len(set(pairs)) == len(pairs)  # no surrogate meets an original twice
    assert [surrogate for surrogate, _ in pairs] == [0, 1, 2, 3] * times
    assert len({original for _, original in pairs}) == distinct
