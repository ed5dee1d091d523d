/* The shown run and tab in the address, the window's title, Ctrl+Enter, notifications, and the
   sidebar, which would cover a narrow window. */
(() => {
  const KEY = 'peft_space_place';
  const SEND = {'prompts': 'generate', 'chat-message': 'chat-send'};
  const TABS = ['Data', 'Recipe', 'Train', 'Compare', 'Publish'];
  /* What other programs call a setting. */
  const OTHER_WORDS = {'cutoff': 'max length', 'cutoff len': 'max length', 'lr': 'learning rate',
    'scheduler': 'schedule', 'quantization bit': 'quantization',
    'lora target': 'target modules', 'finetuning type': 'method'};
  const narrow = matchMedia('(max-width: 900px)');
  let place = {run: '', tab: ''};

  const remember = change => {
    place = {...place, ...change};
    const query = new URLSearchParams(location.search);
    for (const name of ['run', 'tab'])
      place[name] ? query.set(name, place[name]) : query.delete(name);
    const text = query.toString();
    history.replaceState(null, '', location.pathname + (text ? `?${text}` : ''));
    localStorage.setItem(KEY, JSON.stringify(place));
  };

  window.peftSpace = {
    /* Where the visitor wants to be: [run, tab, is the window wide?, was a place remembered?]. */
    start() {
      const query = new URLSearchParams(location.search);
      let stored = null;
      try { stored = JSON.parse(localStorage.getItem(KEY)); } catch { /* not ours */ }
      const asked = query.has('run') || query.has('tab');
      const from = asked ? {run: query.get('run') || '', tab: query.get('tab') || ''} : stored;
      return JSON.stringify([from?.run || '', from?.tab || '', !narrow.matches, !!from]);
    },
    /* Called with the header whenever it changes. */
    header(element) {
      const shown = element.querySelector('[data-title]');
      if (!shown) return;
      document.title = shown.dataset.title;
      const before = place.run, was = window.peftSpace.status;
      remember({run: shown.dataset.run});
      window.peftSpace.status = shown.dataset.status;
      const ended = ['training', 'starting'].includes(was) && shown.dataset.status !== was
        && !['training', 'starting'].includes(shown.dataset.status);
      if (ended && before === place.run && window.Notification?.permission === 'granted')
        new Notification(shown.dataset.title);
    },
    tab() {
      const tab = document.querySelector('#steps [role=tab][aria-selected=true]');
      const name = TABS.find(title => tab?.textContent.includes(title));
      if (name && name !== place.tab) scrollTo({top: 0});
      if (name) remember({tab: name});
    },
    notify() {
      window.Notification?.requestPermission();
    },
    /* Hides the settings whose title and help do not have the typed words. */
    search(text) {
      const plain = one => one.toLowerCase().replaceAll('_', ' ').replaceAll('-', ' ');
      const typed = plain(text || '').trim(), words = OTHER_WORDS[typed] || typed;
      for (const field of document.querySelectorAll('#settings .setting')) {
        const name = field.id || field.querySelector('[id^=recipe-]')?.id || '';
        const known = plain(`${name.replace('recipe-', '')} ${field.textContent}`);
        field.style.display = known.includes(words) ? '' : 'none';
      }
    },
  };

  const openSidebar = open => {
    const sidebar = document.getElementById('sidebar');
    if (sidebar && sidebar.classList.contains('open') !== open)
      sidebar.querySelector('[aria-label="Toggle Sidebar"]')?.click();
  };
  narrow.addEventListener('change', () => openSidebar(!narrow.matches));
  document.addEventListener('click', event => {
    if (narrow.matches && event.target.closest?.('#run-list [data-value]')) openSidebar(false);
  });

  document.addEventListener('keydown', event => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    const field = event.target.closest?.(Object.keys(SEND).map(id => `#${id}`).join(','));
    if (!field) return;
    event.preventDefault();
    document.getElementById(SEND[field.id])?.click();
  });
})();
