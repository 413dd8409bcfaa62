function outcome(item) {
  return item.winner === null ? badge(`dropped: ${item.outcome}`) : badge(`response ${item.winner + 1} chosen`, "good");
}

function sure(item) {
  if (item.share === null) return null;
  if (item.winner === null) return make("span", "", `P(response 1 is better) = ${item.share.toFixed(2)}`);
  return make("span", "", `at P = ${(item.winner === 0 ? item.share : 1 - item.share).toFixed(2)}`);
}

function response(item, number) {
  const said = item.responses[number].trim() ? item.responses[number] : make("p", "quiet", "(empty)");
  if (item.winner === null) return text(`Response ${number + 1}`, said);
  const chosen = item.winner === number;
  return text(`Response ${number + 1}: ${chosen ? "chosen" : "rejected"}`, said, chosen ? "chosen" : "");
}

function descriptions(item) {
  if (item.blind) return make("p", "quiet", "The judge had no description.");
  const first = make("p", "quiet", "None: this is the first look."), lost = make("p", "quiet", "Not at hand.");
  return make(
    "div", "pair",
    text("Description before", item.before === null ? first : marked(item.before)),
    text("Description after looking back", item.after === null ? lost : marked(item.after)),
    item.borrowed === null ? null : text("The judge read another description", item.borrowed),
  );
}

function probabilities(item) {
  if (!item.orders.length) return make("p", "quiet", "The judge was not asked, so there are no probabilities.");
  const row = (tag, cells) => make("tr", "", ...cells.map((cell, at) => make(at ? tag : "th", "", cell)));
  const body = item.orders.map(([p, q, share], at) =>
    row("td", [`response ${at + 1}`, p.toFixed(3), q.toFixed(3), `${(100 * share).toFixed(1)} %`]));
  const head = row("th", ["Shown first", "p(response 1)", "p(response 2)", "Response 1 better"]);
  const table = make("table", "", make("thead", "", head), make("tbody", "", ...body));
  const scroll = make("div", "scroll", table);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Probabilities by order");
  return scroll;
}

function sampleCard(item) {
  const swayed = item.swayed ? badge("the order changed the choice") : null;
  const run = data.runs.length > 1 ? make("span", "quiet", data.runs[item.run]) : null;
  return make(
    "article", "card",
    make("header", "", outcome(item), sure(item), swayed, run, make("span", "quiet", `round ${item.round}`),
      make("span", "quiet mono", item.id)),
    frames(item.strip, item.video),
    make("h3", "", item.prompt),
    make("div", "pair", response(item, 0), response(item, 1)),
    descriptions(item),
    probabilities(item),
    ...item.rationales.map((said, at) => text(`Rationale, response ${at + 1} shown first`, said)),
  );
}

function startSamples(root) {
  const form = root.querySelector("form");
  const rounds = [...new Set(data.samples.map(item => item.round))].sort((a, b) => a - b);
  const outcomes = [...new Set(data.samples.map(item => item.outcome))].sort();
  choices(form.elements.run, [["", "all"], ...data.runs.map((name, at) => [String(at), name])]);
  form.elements.run.closest("label").hidden = data.runs.length < 2;
  choices(form.elements.round, [["", "all"], ...rounds.map(round => [String(round), String(round)])]);
  choices(form.elements.outcome, [["", "all"], ["dropped", "all that were dropped"], ...outcomes.map(name => [name, name])]);
  return new Browser(root, {
    items: data.samples,
    matches: (item, wanted) =>
      (!wanted.run || item.run === Number(wanted.run)) && (!wanted.round || item.round === Number(wanted.round)) &&
      (!wanted.outcome || item.outcome === wanted.outcome || (wanted.outcome === "dropped" && item.winner === null)) &&
      (!wanted.swayed || item.swayed),
    card: sampleCard,
    entry: item => [outcome(item), make("span", "", item.prompt)],
  });
}
