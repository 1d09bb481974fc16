// The page: what arrives from the server, keys and buttons.

const S = {
  made: 0, flights: 0, columns: [], names: [], colours: {}, checkpoints: [], sources: [], folder: '',
  flight: null, waiting: new Set(), timer: 0, reading: 0, silence: 0, held: false, asked: null, settings: null, opened: null, lastKey: '', measured: {},
  foot: 'Enter asks. A chip turns a subspace on or off, its slider says how much.',
  inspected: null, history: [], moving: false, lost: 0, state: '', ready: false, server: false, model: '', offered: '', wanted: null,
};
const questions = {};
const $ = (id) => document.getElementById(id);
const prompt = $('prompt');

// Values for a handler: its button is clicked, and asks for them, which may be later than the next
// click on it.
function send(name, values) {
  (questions[name] ??= []).push(values);
  $(`ri-do-${name}`).click();
}

const layout = () => JSON.stringify([S.columns.map(expressionOf), settingsNow()]);

// Once when the page opens, and once when the model is ready, which may be a minute later: what
// somebody has changed until then stays.
function arrived(message) {
  Object.assign(S, { model: message.model, server: message.server });
  takeNames(message);
  if (!S.columns.length || (!S.flight && layout() === S.offered)) {
    S.columns = message.compositions.map((each) => ({ ...newColumn(Object.entries(each.strengths)), text: each.text, trouble: each.error || '' }));
    showSettings(message.settings);
    S.offered = layout();
    S.wanted = message.run ? message.prompt : null;
  }
  if (message.prompt && !prompt.value) prompt.value = message.prompt;
  $('ri-examples').replaceChildren(...message.examples.map((text) => make('button', {
    type: 'button', onclick: () => { prompt.value = text; fit(); askAll(); },
  }, text)));
  if (message.notice) alertOf(message.notice);
  fit();
  draw();
  runWanted();
}

function statusOf({ state, text, seconds }) {
  const became = state === 'ready' && !S.ready;
  if (state !== S.state) announce(text);
  Object.assign(S, { state, ready: state === 'ready' });
  const box = $('status');
  box.className = `ri-${state}`;
  box.textContent = state === 'loading' ? `${text} (${Math.round(seconds)} s)` : text;
  $('compare').disabled = !S.ready;
  if (became && S.columns.length) send('arrive', [location.search]); // a link's checkpoints can be opened now
}

// A link says what it shows: it is asked as soon as the model can answer.
function runWanted() {
  if (S.ready && S.wanted && prompt.value === S.wanted && !S.flight) {
    S.wanted = null;
    askAll();
  }
}

function receive(text) {
  if (!text) return;
  const message = JSON.parse(text);
  ({ arrival: arrived, status: statusOf, answers: answered, parsed, inside: looked, checkpoints: opened })[message.kind](message);
}

function fit() {
  prompt.style.height = 'auto';
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 160)}px`;
  showAsked();
}

prompt.addEventListener('input', fit);
prompt.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    askAll();
  }
});
$('ri-form').addEventListener('submit', (event) => {
  event.preventDefault();
  askAll();
});
$('stop').addEventListener('click', stop);
$('differences').addEventListener('change', drawColumns);
$('ri-open-form').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!S.moving) move('open', $('source').value);
});
$('copy-link').addEventListener('click', (event) => copy(event.target, new URL(linkOf(comparison()), location.href).href));
$('save-json').addEventListener('click', (event) => save(
  event.target, `${JSON.stringify(comparison(), null, 2)}\n`, 'application/json', 'comparison.json'));
$('save-markdown').addEventListener('click', (event) => save(
  event.target, asMarkdown(comparison()), 'text/markdown', 'comparison.md'));
$('use-api').addEventListener('click', () => {
  $('ri-more').hidePopover();
  document.querySelector('footer .show-api')?.click();
});
$('turn-dark').addEventListener('click', () => keepTheme(document.body.classList.toggle('dark') ? 'dark' : 'light'));
document.addEventListener('keydown', (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
  if (event.key === 'Escape' && S.flight && !document.querySelector('.ri-pop:popover-open')) stop();
  if (event.key === '/' && !typing) {
    event.preventDefault();
    prompt.focus();
  }
});

// A browser may forbid storage: then the theme is the system's.
function keepTheme(theme) {
  try {
    if (theme) localStorage.setItem('roadint-theme', theme);
    else if (!location.search.includes('__theme=') && localStorage.getItem('roadint-theme')) {
      document.body.classList.toggle('dark', localStorage.getItem('roadint-theme') === 'dark');
    }
  } catch { /* the system's */ }
}
keepTheme();

window.roadint = { values: (name) => questions[name].shift(), receive, query: () => [location.search] };
prompt.focus();
