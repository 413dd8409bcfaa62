const starts = [["samples-browser", startSamples], ["flips-browser", startFlips]];
for (const [id, start] of starts) {
  const root = document.getElementById(id);
  if (!root) continue;
  browsers.push(start(root));
  for (const still of root.parentElement.querySelectorAll(".static")) still.hidden = true;
}

const theme = document.getElementById("theme");
const isDark = () => (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  name();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
name();
theme.hidden = false;

// The place in the page shows in its navigation.
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, {rootMargin: "-15% 0px -80% 0px"});
for (const section of document.querySelectorAll("main > section[id]")) seen.observe(section);
