"""The outcome of the study: results.json, a Markdown table, and the plot as SVG and PNG."""

import json
import statistics

COLOURS = ["#777777", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377"]


def write(outcome, folder):
    (folder / "results.json").write_text(json.dumps(outcome, indent=1) + "\n")
    text = table(outcome)
    (folder / "table.md").write_text(text)
    plot(outcome, folder)
    print(text)


def names(outcome):
    return list(dict.fromkeys(point["row"] for point in outcome["measured"]))


def lengths(outcome):
    return sorted({point["steps"] for point in outcome["measured"]})


def last_complete(outcome, seeds):
    """The longest training that every row has finished with every seed."""
    return max(steps for steps in lengths(outcome)
               if all(len(values(outcome, row, steps, id)) == seeds for row in names(outcome)))


def values(outcome, row, steps, of):
    """What `of` finds in this row's points of this length, seed by seed."""
    return [of(point) for point in outcome["measured"] if point["row"] == row and point["steps"] == steps]


def spread(numbers, digits, seeds):
    """Mean, and half the range behind it; says where seeds are missing."""
    if not numbers:
        return ""
    if len(numbers) < seeds:
        return f"{statistics.mean(numbers):.{digits}f} ({len(numbers)} seed)"
    return f"{statistics.mean(numbers):.{digits}f} ± {(max(numbers) - min(numbers)) / 2:.{digits}f}"


def markdown(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def table(outcome):
    seeds = len({point["seed"] for point in outcome["measured"]})
    last = last_complete(outcome, seeds)
    head = ["", "parameters", "ms a step", *(f"{steps:,} steps" for steps in lengths(outcome)),
            f"right class, {last:,} steps"]
    rows = []
    for row in names(outcome):
        time = outcome["times"][row]
        distances = [spread(values(outcome, row, steps, lambda p: p["fd_classifier"]), 2, seeds)
                     for steps in lengths(outcome)]
        agreement = statistics.mean(values(outcome, row, last, lambda p: p["class_agreement"]))
        rows.append([row, f"{time['parameters']:,}", f"{1000 * time['median_s']:.1f}", *distances, f"{100 * agreement:.1f} %"])
    held_out = outcome["held_out"]
    at_last = [f"{held_out['fd_classifier']:.2f}" if steps == last else "" for steps in lengths(outcome)]
    rows.append(["*held-out pictures*", "", "", *at_last, f"{100 * held_out['class_agreement']:.1f} %"])
    distance = markdown(head, rows)

    rows = []
    for row in names(outcome):
        branches = values(outcome, row, last, lambda p: p["branches"])
        losses = zip(*(branch["velocity_loss"] for branch in branches))
        cells = [", ".join(f"{statistics.mean(loss):.4f}" for loss in losses)]
        for quantity, digits in (("distance", 2), ("cosine", 3)):
            places = zip(*(branch["features"] for branch in branches))
            cells.append(", ".join(f"{place[0]['after']}: {statistics.mean(seed[quantity] for seed in place):.{digits}f}"
                                   for place in places))
        rows.append([row, *cells])
    inside = markdown(["", "held-out velocity loss, branch by branch", "distance to the last features", "cosine with them"], rows)

    times = next(iter(outcome["times"].values()))
    any_point = outcome["measured"][0]
    return f"""{distance}
FD-classifier (lower is better) of {outcome['samples']:,} samples against the {any_point['reference_count']:,} training
pictures; {seeds} seeds, mean ± half their range. The two halves of the training pictures are
{any_point['real_versus_real']:.2f} apart; the row of held-out pictures is what samples as good as real ones would get. The
classifier is right on {100 * any_point['held_out_accuracy']:.1f} % of the pictures that were held out of its own training.
Steps are timed by `deepflow bench train`, batch {times['batch']}, {times['threads']} thread(s).

{inside}
After {last:,} steps, on the {any_point['branches']['samples']:,} held-out pictures, mean over the seeds.
"""


def plot(outcome, folder):
    """FD-classifier over the training length: a line a row, its seeds as dots."""
    import matplotlib
    matplotlib.use("Agg")
    # The same file from the same numbers.
    matplotlib.rcParams["svg.hashsalt"] = "components"
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, (over_steps, over_time) = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for row, colour in zip(names(outcome), COLOURS):
        reached, means = [], []
        for steps in lengths(outcome):
            of_point = values(outcome, row, steps, lambda p: p["fd_classifier"])
            over_steps.plot([steps] * len(of_point), of_point, "o", color=colour, alpha=0.4, markersize=4)
            if of_point:
                reached.append(steps)
                means.append(statistics.mean(of_point))
        minutes = [steps * outcome["times"][row]["median_s"] / 60 for steps in reached]
        over_steps.plot(reached, means, color=colour, label=row)
        over_time.plot(minutes, means, "o-", color=colour, markersize=4)
    over_steps.set(xlabel="training steps", ylabel="FD-classifier (lower is better)", xscale="log", yscale="log",
                   xticks=lengths(outcome), title="equal steps")
    over_time.set(xlabel="minutes of training on one core", xscale="log", title="equal time")
    over_time.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axes in (over_steps, over_time):
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
    over_steps.legend(frameon=False, fontsize="small")
    figure.savefig(folder / "components.svg", metadata={"Date": None})
    figure.savefig(folder / "components.png", dpi=110)
