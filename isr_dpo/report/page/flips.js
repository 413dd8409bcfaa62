const MOVES = {right: "wrong → right", wrong: "right → wrong"};

function moved(item, first, second) {
  const [a, b] = [item.answers[first], item.answers[second]];
  if (!a || !b || a[0] === null || b[0] === null || a[0] === b[0]) return "";
  return b[0] ? "right" : "wrong";
}

function answered(label, answer) {
  const [correct, score, said, reply] = answer;
  const scored = score === null ? "" : `, score ${score}`;
  const body = make("div", "", make("p", "", said), make("p", "reply quiet", reply));
  return text(`${label}: ${correct ? "right" : "wrong"}${scored}`, body, correct ? "chosen" : "failed");
}

function flipCard(item, first, second) {
  const move = moved(item, first, second), names = data.flips.systems;
  return make(
    "article", "card",
    make("header", "", badge(MOVES[move], move === "right" ? "good" : "bad"), make("span", "quiet", item.set),
      make("span", "quiet mono", item.id)),
    frames(item.strip, item.video),
    make("h3", "", item.text),
    make("p", "truth", make("span", "quiet", "Truth"), " ", item.truth),
    make("div", "pair", answered(names[first], item.answers[first]), answered(names[second], item.answers[second])),
  );
}

function startFlips(root) {
  const form = root.querySelector("form"), {systems, questions, counts} = data.flips;
  const known = [...new Set(counts.flatMap(([, first, second]) => [first, second]))].sort((a, b) => a - b);
  const named = known.map(at => [String(at), systems[at]]);
  const sets = [...new Set(counts.map(([set]) => set))];
  choices(form.elements.first, named);
  choices(form.elements.second, named);
  form.elements.second.value = String(known[known.length - 1]);
  choices(form.elements.set, [["", "all"], ...sets.map(set => [set, set])]);
  choices(form.elements.move, [["", "both ways"], ...Object.entries(MOVES)]);
  form.elements.set.closest("label").hidden = sets.length < 2;
  const pair = wanted => [Number(wanted.first), Number(wanted.second)];
  const chosen = () => pair(Object.fromEntries(new FormData(form)));

  function tell(wanted, found) {
    const [first, second] = pair(wanted);
    const said = counts.flatMap(([set, a, b, rows, right, wrong]) => {
      if (wanted.set && set !== wanted.set) return [];
      if (a === first && b === second) return [`${set}: ${right} went right and ${wrong} wrong, of ${rows} scored in both`];
      if (a === second && b === first) return [`${set}: ${wrong} went right and ${right} wrong, of ${rows} scored in both`];
      return [];
    });
    root.querySelector(".counts").textContent = said.length
      ? `From ${systems[first]} to ${systems[second]}. ${said.join("; ")}. ${found.length} to look at here.`
      : "These two have no set in common, or are the same.";
  }

  return new Browser(root, {
    items: questions,
    matches: (item, wanted) => {
      const move = moved(item, ...pair(wanted));
      return move !== "" && (!wanted.move || wanted.move === move) && (!wanted.set || wanted.set === item.set);
    },
    card: item => flipCard(item, ...chosen()),
    entry: item => {
      const move = moved(item, ...chosen());
      return [badge(MOVES[move], move === "right" ? "good" : "bad"), make("span", "", item.text)];
    },
    changed: tell,
  });
}
