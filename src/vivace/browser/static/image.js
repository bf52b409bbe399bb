// What the pages that classify an image share: two languages, and an image that is chosen, dropped or pasted.

export const find = (id) => document.getElementById(id);
export const percent = (value) => (100 * value).toFixed(1);

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// {say(key, ...values): the words of a key in the chosen language, isChinese(), refresh(): writes the page's fixed words}.
// words: {en, zh}, each key → text. changed: what is called after another language was chosen.
export function speech(words, changed) {
  const asked = new URLSearchParams(location.search).get("lang");
  let language = Object.hasOwn(words, asked ?? "") ? asked : navigator.language.startsWith("zh") ? "zh" : "en";
  const say = (key, ...values) => words[language][key].replace(/\{(\d)\}/g, (_, index) => values[Number(index)]);
  find("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    changed();
  });
  return {
    say,
    isChinese: () => language === "zh",
    refresh() {
      for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
      document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
      find("language").textContent = language === "zh" ? "English" : "中文";
      find("language").lang = language === "zh" ? "en" : "zh";
    },
  };
}

// Calls take(file) for each image that is chosen, dropped or pasted, and refuse() where there was no file.
export function onImage(take, refuse) {
  const first = (data) => (data.files.length ? take(data.files[0]) : refuse());
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", () => {
    if (find("file").files.length) take(find("file").files[0]);
    find("file").value = "";
  });
  const drop = find("drop");
  for (const name of ["dragenter", "dragover"]) {
    addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) addEventListener(name, () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    first(event.dataTransfer);
  });
  addEventListener("paste", (event) => {
    if (!["INPUT", "TEXTAREA"].includes(document.activeElement.tagName)) first(event.clipboardData);
  });
}

// Shows an image file in #preview; what the browser can't show stays hidden.
export function preview(file) {
  const shown = find("preview");
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  shown.onerror = () => (shown.hidden = true);
}

// The likeliest classes as bars. rows: [{label, probability}].
export function bars(rows) {
  const list = element("ol", "", "bars");
  for (const row of rows) {
    const item = element("li");
    const bar = element("meter");
    bar.value = row.probability;
    bar.setAttribute("aria-hidden", "true");
    item.append(element("span", row.label, "name"), element("span", `${percent(row.probability)} %`, "percent"), bar);
    list.append(item);
  }
  return list;
}
