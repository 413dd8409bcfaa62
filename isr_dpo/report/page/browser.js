// One item at a time out of those that the filters let through, or the list of them.
class Browser {
  constructor(root, {items, matches, card, entry, changed = () => {}}) {
    Object.assign(this, {root, items, matches, card, entry, changed});
    this.form = root.querySelector("form");
    this.at = 0;
    this.listed = false;
    const button = name => root.querySelector(`.bar [name="${name}"]`);
    [this.previous, this.next, this.switch] = [button("previous"), button("next"), button("list")];
    this.previous.addEventListener("click", () => this.move(-1));
    this.next.addEventListener("click", () => this.move(1));
    this.switch.addEventListener("click", () => this.show(this.at, !this.listed));
    this.form.addEventListener("submit", event => event.preventDefault());
    this.form.addEventListener("input", () => this.filter());
    root.hidden = false;
    this.filter();
  }

  filter() {
    const wanted = Object.fromEntries(new FormData(this.form));
    const needle = (wanted.text || "").trim().toLowerCase();
    this.found = this.items.filter(item => this.matches(item, wanted) && (!needle || this.words(item).includes(needle)));
    this.changed(wanted, this.found);
    this.show(0, this.listed);
  }

  words(item) {
    item.words ??= JSON.stringify(item).toLowerCase();
    return item.words;
  }

  move(by) {
    if (!this.found.length) return;
    this.show(Math.min(Math.max(this.at + by, 0), this.found.length - 1), false);
  }

  show(at, listed) {
    [this.at, this.listed] = [at, listed];
    const count = this.found.length;
    const stage = this.root.querySelector(".stage"), list = this.root.querySelector(".list");
    this.switch.setAttribute("aria-pressed", String(listed));
    this.previous.disabled = listed || at === 0;
    this.next.disabled = listed || at >= count - 1;
    this.root.querySelector("output").textContent = !count ? "none" : listed ? `${count}` : `${at + 1} of ${count}`;
    list.hidden = !listed || !count;
    stage.hidden = listed && count > 0;
    if (!count) stage.replaceChildren(make("p", "quiet", "Nothing here fits these filters."));
    else if (listed) list.replaceChildren(...this.found.map((item, place) => this.line(item, place)));
    else stage.replaceChildren(this.card(this.found[at]));
  }

  line(item, place) {
    const button = make("button", "", ...this.entry(item));
    button.type = "button";
    button.addEventListener("click", () => {
      this.show(place, false);
      this.next.focus();
    });
    return make("li", "", button);
  }
}

const browsers = [];

// Keys move the browser that has the focus, or else the one in the middle of the window.
document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll")) return;
  const by = {j: 1, J: 1, ArrowRight: 1, k: -1, K: -1, ArrowLeft: -1}[event.key];
  if (!by) return;
  const middle = innerHeight / 2;
  const wanted = browsers.find(({root}) => root.contains(document.activeElement)) ?? browsers.find(({root}) => {
    const box = root.getBoundingClientRect();
    return document.activeElement === document.body && box.top < middle && box.bottom > middle;
  });
  if (!wanted) return;
  event.preventDefault();
  wanted.move(by);
});
