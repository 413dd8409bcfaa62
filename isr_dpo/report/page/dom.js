"use strict";
// Texts of the runs reach the page as text alone: through textContent, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

function choices(select, options) {
  for (const [value, label] of options) {
    const option = make("option", "", label);
    option.value = value;
    select.append(option);
  }
  select.closest("label").hidden = options.length < 2;
}

function frames(key, video) {
  const strip = data.strips[key];
  if (!strip) return make("p", "quiet", `Frames of ${video} are not at hand.`);
  const row = make("div", strip.tiny ? "frames tiny" : "frames");
  row.setAttribute("role", "img");
  row.setAttribute("aria-label", `${strip.uris.length} frames of video ${video}, in order`);
  for (const uri of strip.uris) {
    const image = make("img");
    image.src = uri;
    image.alt = "";
    row.append(image);
  }
  return row;
}

function text(title, content, classes = "") {
  const body = content instanceof Node ? content : make("p", "", content);
  return make("div", `text ${classes}`, make("h4", "", title), body);
}

function marked(words) {
  const body = make("p");
  words.forEach(([run, mark], at) => {
    if (at) body.append(" ");
    body.append(mark ? make(mark === "added" ? "ins" : "del", "", run) : run);
  });
  return body;
}

function badge(label, tone = "") {
  return make("span", `badge ${tone}`, label);
}
